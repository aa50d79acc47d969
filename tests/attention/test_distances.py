"""Projected distances against the layer's own product."""

import copy
import pickle

import pytest
import torch
from torch import nn

from speechattn.attention import RelativeSelfAttention, distances, relative_positions
from speechattn.attention.distances import KEPT, DistanceCache, project_distances


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


def test_kept_while_nothing_changes():
    linear, kept = layer(dtype=torch.float32), DistanceCache()
    table = relative_positions(300, linear.in_features)

    def check(frames: int, again: bool, of: torch.Tensor = table) -> None:
        centre = len(of) // 2
        positions = of[centre - frames + 1 : centre + frames]
        before = kept._projected
        with torch.inference_mode():
            y = kept.project(linear, positions)
            torch.testing.assert_close(y, positions @ linear.weight.T, atol=1e-5, rtol=1e-4)
        assert (kept._projected is before) == again

    check(200, False)
    check(200, True)
    check(150, True)  # the middle of what is kept
    check(250, False)
    with torch.no_grad():
        linear.weight.mul_(2)
    check(200, False)
    check(200, True)
    check(200, False, table.clone().mul_(3))
    check(200, False)
    table.mul_(2)
    check(200, False)
    linear.load_state_dict({"weight": torch.randn_like(linear.weight)})
    check(200, False)
    linear.weight.data = torch.randn_like(linear.weight)
    check(200, False)
    check(KEPT + 1, True, relative_positions(KEPT + 1, linear.in_features))  # too long to keep


def test_not_kept_where_gradients_are_wanted():
    linear, kept = layer(dtype=torch.float32), DistanceCache()
    positions = relative_positions(200, linear.in_features)
    for _ in range(2):
        y = kept.project(linear, positions)
        (gradient,) = torch.autograd.grad(y.sum(), linear.weight)
        assert gradient.abs().sum() > 0 and kept._projected is None


def test_the_layer_forgets_and_copies_have_their_own():
    torch.manual_seed(0)
    attention = RelativeSelfAttention(32, 4).eval()
    x, lengths = torch.randn(2, 9, 32), torch.tensor([9, 4])
    positions = relative_positions(9, 32)
    with torch.no_grad():
        first = attention(x, lengths, positions)
        other = copy.deepcopy(attention)
        attention.position.weight.data.mul_(3)  # no version tells of it
        attention.eval()
        changed = attention(x, lengths, positions)
        assert not torch.allclose(first, changed)
        torch.testing.assert_close(other(x, lengths, positions), first)
        loaded = pickle.loads(pickle.dumps(attention))
        torch.testing.assert_close(loaded(x, lengths, positions), changed)
    attention.train()
    wanted = attention(x, lengths, positions)
    torch.testing.assert_close(changed, wanted.detach())
