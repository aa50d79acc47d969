import math

import pytest
import torch

from speechattn.attention.positions import RelativePositions, relative_positions
from speechattn.attention.softmax import alibi_slopes


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_sinusoids_of_each_distance(frames):
    width = 6
    table = relative_positions(frames, width)
    assert table.shape == (2 * frames - 1, width)
    for row in range(2 * frames - 1):
        distance = frames - 1 - row
        for k in range(0, width, 2):
            angle = distance / 10000 ** (k / width)
            assert table[row, k].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[row, k + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_scales_and_looks_up():
    module = RelativePositions(16).eval()
    for frames in (3, 700, 2, 1300, 1):  # beyond the table, and back
        x = torch.randn(2, frames, 16)
        y, positions = module(x)
        assert torch.allclose(y, x * 4)
        assert torch.allclose(positions, relative_positions(frames, 16), atol=1e-6)


def test_table_of_a_validation_pass_serves_training():
    """Lightning validates in inference mode; its tensors may not be saved for a backward pass."""
    module, linear = RelativePositions(8, dropout=0.0), torch.nn.Linear(8, 8)
    with torch.inference_mode():
        module(torch.randn(1, 5, 8))
    linear(module(torch.randn(1, 5, 8))[1]).sum().backward()
    assert linear.weight.grad.abs().max() > 0


def test_nothing_to_save():
    module = RelativePositions(8)
    module(torch.randn(1, 5, 8))
    assert not module.state_dict()


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match="even"):
        RelativePositions(7)


def test_slopes_of_alibi():
    """Of no power of two, as in the authors' code: those of 4 heads, then every second of 8."""
    expected = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])
    assert torch.equal(alibi_slopes(6), expected)
    assert torch.equal(alibi_slopes(3), torch.tensor([2.0**-4, 2.0**-8, 2.0**-2]))
    assert torch.equal(alibi_slopes(1), torch.tensor([2.0**-8]))
    assert torch.equal(alibi_slopes(8), 2.0 ** -torch.arange(1.0, 9.0))
    twelve = alibi_slopes(12)
    assert torch.equal(twelve[:8], alibi_slopes(8))
    assert torch.equal(twelve[8:], 2.0 ** -torch.tensor([0.5, 1.5, 2.5, 3.5]))
