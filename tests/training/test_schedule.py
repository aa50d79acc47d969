"""Learning rates against their formulas."""

import math

import pytest

from speechattn.training.schedule import noam, warmup_cosine


def test_noam_is_the_papers():
    """1706.03762, equation 3: min(step**-0.5, step * warmup**-1.5), scaled to peak at 1."""
    for step in range(1, 200):
        paper = min(step**-0.5, step * 25**-1.5)
        assert noam(step - 1, 25) == pytest.approx(paper * 25**0.5)
    assert noam(24, 25) == 1.0
    assert noam(0, 0) == 1.0


def test_cosine():
    rates = [warmup_cosine(step, 10, 110) for step in range(130)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == rates[10] == 1.0
    assert rates[60] == pytest.approx((1 + 0.01) / 2)
    assert rates[110] == pytest.approx(0.01)
    assert rates[110:] == pytest.approx([0.01] * 20)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[35] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (10, 10), (20, 10), (0, 0)])
def test_cosine_of_short_runs(warmup, total):
    rates = [warmup_cosine(step, warmup, total) for step in range(40)]
    assert all(0.0 < rate <= 1.0 for rate in rates)
