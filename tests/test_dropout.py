"""The fast dropout against the definition (Srivastava et al. 2014, inverted scaling)."""

import pytest
import torch

from speechattn.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_scale(p):
    torch.manual_seed(0)
    x = torch.ones(500, 401)  # no multiple of four: the last word of random bits is used in part
    y = Dropout(p)(x)
    kept = y != 0
    sigma = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(kept.float().mean().item() - (1 - p)) < 5 * sigma + 1e-5
    assert torch.allclose(y[kept], torch.tensor(1 / (1 - p)), rtol=2e-4)
    assert y.mean().item() == pytest.approx(1, abs=5 * sigma / (1 - p))


def test_values_fall_independently():
    """Neighbours share a random word, so look at each of the four lanes and between them."""
    torch.manual_seed(0)
    kept = (Dropout(0.3)(torch.ones(40_000, 4)) != 0).float()
    assert torch.allclose(kept.mean(0), torch.full((4,), 0.7), atol=0.012)
    correlation = torch.corrcoef(torch.cat((kept.T, kept.T.roll(1, 1))))
    assert (correlation - torch.eye(8)).abs().max() < 0.03


def test_gradient_passes_where_values_do():
    x = torch.randn(40, 33, requires_grad=True)
    y = Dropout(0.4)(x)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)
    assert torch.allclose(x.grad * x.detach(), y.detach())


@pytest.mark.parametrize("p", [0.0, 1e-7])
def test_nothing_falls(p):
    x = torch.randn(3, 5)
    assert Dropout(p)(x) is x


def test_everything_falls():
    assert Dropout(1.0)(torch.randn(3, 5)).abs().max() == 0


def test_eval_is_identity():
    x = torch.randn(3, 5)
    assert Dropout(0.5).eval()(x) is x


def test_seed_and_dtype():
    x = torch.ones(7, 9, dtype=torch.bfloat16)
    torch.manual_seed(3)
    first = Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(x), first)
    assert first.dtype == torch.bfloat16
