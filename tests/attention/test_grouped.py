"""Grouped attention against loops over groups and heads, and against plain relative attention."""

import math

import pytest
import torch

from speechattn.attention.grouped import GroupedSelfAttention, grouped_positions
from speechattn.attention.positions import relative_positions
from speechattn.attention.relative import RelativeSelfAttention


def build(width=8, heads=2, group=3):
    torch.manual_seed(0)
    module = GroupedSelfAttention(width, heads, group=group).double()
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() == 1:
                p.normal_()  # a bias that is zero hides what padding does
    return module


def sinusoid(distance, width):
    rate = [10000 ** (-2 * c / width) for c in range(width // 2)]
    return [f(distance * r) for r in rate for f in (math.sin, math.cos)]


def distances(apart, group):
    """Frame distances that stand for two groups so far apart; an even group has two zeros."""
    if group % 2:
        return [apart * group + group // 2 - s for s in range(group)]
    around = [apart * group + group // 2 - s for s in range(group + 1)]  # one too many
    if apart == 0:
        half = group // 2
        return [*range(half - 1, -1, -1), *range(0, -half, -1)]
    return around[1:] if apart > 0 else around[:-1]


def brute_force(module, x):
    """One item (T, D), alone: every pair of groups by itself."""
    g, heads, width = module.group, module.heads, module.width
    count, depth = -(-len(x) // g), g * width // heads

    def fill(y):
        missing = y.new_zeros(count * g - len(y), width)
        return torch.cat((y, missing)).reshape(count, g * width)

    q, k, v = fill(module.query(x)), fill(module.key(x)), fill(module.value(x))
    u = torch.cat([module.content_bias.flatten()] * g)
    w = torch.cat([module.position_bias.flatten()] * g)
    rows = []
    for i in range(count):
        out = []
        for h in range(heads):
            part = slice(h * depth, (h + 1) * depth)
            scores = []
            for j in range(count):
                p = torch.tensor([sinusoid(d, width) for d in distances(i - j, g)]).to(x)
                p = module.position(p).flatten()
                content = torch.dot((q[i] + u)[part], k[j][part])
                place = torch.dot((q[i] + w)[part], p[part])
                scores.append((content + place) / math.sqrt(depth))
            weights = torch.stack(scores).softmax(0)
            out.append(sum(a * v[j][part] for j, a in enumerate(weights)))
        rows.append(torch.cat(out).view(g, width))
    return module.output(torch.cat(rows)[: len(x)])


@pytest.mark.parametrize("group", [1, 2, 3, 4])
@pytest.mark.parametrize("frames", [1, 2, 6, 7])
def test_positions(frames, group):
    rows = grouped_positions(frames, 6, group)
    count = -(-frames // group)
    assert rows.shape == ((2 * count - 1) * group, 6)
    for r, row in enumerate(rows.view(2 * count - 1, group, 6)):
        expected = [sinusoid(d, 6) for d in distances(count - 1 - r, group)]
        assert torch.allclose(row, torch.tensor(expected), atol=1e-5)


def test_positions_of_single_frames_are_plain():
    assert torch.equal(grouped_positions(7, 8), relative_positions(7, 8))


@pytest.mark.parametrize("group", [1, 2, 3, 4])
@pytest.mark.parametrize("lengths", [[1], [6, 3], [7, 5, 2, 4]], ids=str)
def test_equals_brute_force(lengths, group):
    """Ragged, and no length but 6 and 3 is a multiple of every group."""
    module = build(group=group)
    x = torch.randn(len(lengths), max(lengths), 8, dtype=torch.double)
    y = module(x, torch.tensor(lengths))
    for b, n in enumerate(lengths):
        assert torch.allclose(y[b, :n], brute_force(module, x[b, :n]), atol=1e-6)


@pytest.mark.parametrize("group", [2, 3])
def test_gradients_equal_brute_force(group):
    module, lengths = build(group=group), [7, 4]
    weight = torch.randn(2, 7, 8, dtype=torch.double)
    x = torch.randn(2, 7, 8, dtype=torch.double)
    grads = []
    for brute in (False, True):
        leaf = x.clone().requires_grad_()
        if brute:
            y = [brute_force(module, leaf[b, :n]) for b, n in enumerate(lengths)]
        else:
            y = module(leaf, torch.tensor(lengths))
        loss = sum((y[b][:n] * weight[b, :n]).sum() for b, n in enumerate(lengths))
        grads.append(torch.autograd.grad(loss, (leaf, *module.parameters())))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert grads[0][0][1, 4:].abs().max() == 0  # padding takes no part, in its group neither


def test_group_of_one_is_relative_attention():
    module = build(group=1)
    plain = RelativeSelfAttention(8, 2).double()
    plain.load_state_dict(module.state_dict())
    x, lengths = torch.randn(3, 9, 8, dtype=torch.double), torch.tensor([9, 4, 7])
    results = []
    for m in (module, plain):
        leaf = x.clone().requires_grad_()
        y = torch.cat([m(leaf, lengths)[b, :n] for b, n in enumerate(lengths)])
        grads = torch.autograd.grad((y * y.detach().cos()).sum(), (leaf, *m.parameters()))
        results.append((y, *grads))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("group", [2, 3, 5])
def test_batch_gives_what_items_give(group):
    module = build(group=group).float()
    lengths = [11, 7, 1, 10]
    x = torch.randn(4, 14, 8)
    for b, n in enumerate(lengths):
        x[b, n:] = 1e3
    y = module(x, torch.tensor(lengths))
    for b, n in enumerate(lengths):
        alone = module(x[b : b + 1, :n], torch.tensor([n]))
        assert torch.allclose(y[b, :n], alone[0], atol=1e-5)


def test_positions_given_or_not():
    module, x, lengths = build(), torch.randn(2, 5, 8).double(), torch.tensor([5, 4])
    given = module(x, lengths, grouped_positions(5, 8, 3).double())
    assert torch.equal(module(x, lengths), given)


def test_empty_item_gives_no_nan():
    module = build().float()
    x = torch.randn(2, 4, 8, requires_grad=True)
    y = module(x, torch.tensor([4, 0]))
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()


def test_dropout_in_training_only():
    torch.manual_seed(0)
    module = GroupedSelfAttention(8, 2, group=2, dropout=0.5)
    x, lengths = torch.randn(1, 8, 8), torch.tensor([8])
    assert not torch.equal(module(x, lengths), module(x, lengths))
    module.eval()
    assert torch.equal(module(x, lengths), module(x, lengths))


def test_refuses_groups_of_nothing():
    with pytest.raises(ValueError, match="at least 1"):
        GroupedSelfAttention(8, 2, group=0)
