"""Projected distances against the layer's own product."""

import pytest
import torch
from torch import nn

from speechattn.attention import distances, relative_positions
from speechattn.attention.distances import project_distances


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(distances, "WORTHWHILE", 0)


@pytest.fixture
def halves(monkeypatch):
    """How often the layer was not called as it is."""
    seen = []
    plain = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda *a: seen.append(1) or plain(*a))
    return seen


def layer(width=12, output=8, bias=False, dtype=torch.double):
    torch.manual_seed(0)
    return nn.Linear(width, output, bias, dtype=dtype)


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_equals_the_layer(frames, halves):
    positions = relative_positions(frames, 12).double()
    projection = layer()
    weight = torch.randn(2 * frames - 1, 8, dtype=torch.double)
    expected = positions @ projection.weight.T
    y = project_distances(projection, positions)
    assert not halves  # by its own way
    torch.testing.assert_close(y, expected)
    (grad,) = torch.autograd.grad(y, projection.weight, weight)
    torch.testing.assert_close(grad, weight.T @ positions)
    with torch.no_grad():
        torch.testing.assert_close(project_distances(projection, positions), expected)


def dropped(positions):
    positions[3, 5] = 0.0
    return positions


def ends_dropped(positions):
    positions[0, 1] = 0.0
    return positions


@pytest.mark.parametrize(
    "change",
    [dropped, ends_dropped, lambda p: p.requires_grad_(), lambda p: p + 1.0, lambda p: p.flip(1)],
)
def test_other_positions_are_multiplied_as_they_are(change, halves):
    positions = change(relative_positions(9, 12).double())
    projection = layer()
    y = project_distances(projection, positions)
    assert halves == [1]
    torch.testing.assert_close(y, positions @ projection.weight.T)


def test_other_layers_are_called(halves):
    positions = relative_positions(9, 12).double()
    with_bias = layer(bias=True)
    y = project_distances(with_bias, positions)
    assert halves == [1]
    torch.testing.assert_close(y, positions @ with_bias.weight.T + with_bias.bias)
    assert project_distances(nn.Identity(), positions) is positions


def test_lower_precision_and_autocast_are_the_layers_own(halves):
    positions = relative_positions(9, 12)
    project_distances(layer(dtype=torch.bfloat16), positions.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert project_distances(layer(dtype=torch.float32), positions).dtype == torch.bfloat16
    assert halves == [1, 1]


def test_short_inputs_are_multiplied_as_they_are(monkeypatch, halves):
    monkeypatch.setattr(distances, "WORTHWHILE", 17 * 96 + 1)
    project_distances(layer(), relative_positions(9, 12).double())
    assert halves == [1]
