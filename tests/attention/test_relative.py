"""Relative self-attention against loops over i and j, written from 1901.02860 section 3.3."""

import math

import pytest
import torch

from speechattn.attention.positions import relative_positions
from speechattn.attention.relative import RelativeSelfAttention, relative_shift


def brute_force(module, x, length):
    """One item, (T, D): every pair of real frames by itself."""
    heads, depth = module.heads, module.width // module.heads
    table = relative_positions(len(x), module.width).to(x.dtype)
    q, k, v = (f(x).view(-1, heads, depth) for f in (module.query, module.key, module.value))
    p = module.position(table).view(-1, heads, depth)
    rows = []
    for i in range(length):
        out = []
        for h in range(heads):
            scores = []
            for j in range(length):
                distance = p[len(x) - 1 - (i - j), h]
                content = torch.dot(q[i, h] + module.content_bias[h], k[j, h])
                place = torch.dot(q[i, h] + module.position_bias[h], distance)
                scores.append((content + place) / math.sqrt(depth))
            weights = torch.stack(scores).softmax(0)
            out.append(sum(w * v[j, h] for j, w in enumerate(weights)))
        rows.append(module.output(torch.cat(out)))
    return torch.stack(rows)


def build(width=8, heads=2):
    torch.manual_seed(0)
    return RelativeSelfAttention(width, heads).double()


@pytest.mark.parametrize("lengths", [[1], [2], [5, 3], [4, 1, 4]], ids=str)
def test_equals_brute_force(lengths):
    module = build()
    x = torch.randn(len(lengths), max(lengths), 8, dtype=torch.double)
    y = module(x, torch.tensor(lengths))
    for b, n in enumerate(lengths):
        assert torch.allclose(y[b, :n], brute_force(module, x[b], n), atol=1e-12)


def test_gradients_equal_brute_force():
    module, lengths = build(), [5, 3]
    weight = torch.randn(2, 5, 8, dtype=torch.double)
    x = torch.randn(2, 5, 8, dtype=torch.double)
    grads = []
    for brute in (False, True):
        leaf = x.clone().requires_grad_()
        if brute:
            y = [brute_force(module, leaf[b], n) for b, n in enumerate(lengths)]
        else:
            y = module(leaf, torch.tensor(lengths))
        loss = sum((y[b][:n] * weight[b, :n]).sum() for b, n in enumerate(lengths))
        grads.append(torch.autograd.grad(loss, (leaf, *module.parameters())))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    assert grads[0][0][1, 3:].abs().max() == 0  # padding takes no part


def test_gradcheck():
    module = build(4, 2)
    x = torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True)
    lengths = torch.tensor([3, 2])
    assert torch.autograd.gradcheck(lambda x: module(x, lengths), x)


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_relative_shift(frames):
    scores = torch.randn(2, 3, frames, 2 * frames - 1)
    shifted = relative_shift(scores)
    for i in range(frames):
        for j in range(frames):
            assert torch.equal(shifted[..., i, j], scores[..., i, frames - 1 - i + j])
    assert shifted.data_ptr() >= scores.data_ptr()
    assert shifted.untyped_storage().data_ptr() == scores.untyped_storage().data_ptr()


def test_relative_shift_of_a_slice():
    """Offset and strides of what it is given count."""
    scores = torch.randn(4, 3, 5)[1:3]
    assert torch.equal(relative_shift(scores)[0, 2], scores[0, 2, :3])
    scores = torch.randn(5, 3).T[None]
    assert torch.equal(relative_shift(scores)[0, 1], scores[0, 1, 1:4])


def test_relative_shift_refuses_other_shapes():
    with pytest.raises(ValueError, match="2T-1"):
        relative_shift(torch.randn(1, 3, 6))


def test_padding_content_does_not_matter():
    module = build().float()
    lengths = torch.tensor([6, 2, 4])
    x = torch.randn(3, 6, 8)
    y = module(x, lengths)
    for b, n in enumerate(lengths.tolist()):
        alone = module(x[b : b + 1, :n], lengths[b : b + 1])
        assert torch.allclose(y[b, :n], alone[0], atol=1e-5)
        x[b, n:] = 1e4
    again = module(x, lengths)
    for b, n in enumerate(lengths.tolist()):
        assert torch.allclose(y[b, :n], again[b, :n], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty_item_gives_no_nan(dtype):
    module = build().to(dtype)
    x = torch.randn(2, 4, 8, dtype=dtype, requires_grad=True)
    y = module(x, torch.tensor([4, 0]))
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()


def test_positions_given_or_not():
    module, x, lengths = build(), torch.randn(2, 5, 8).double(), torch.tensor([5, 4])
    given = module(x, lengths, relative_positions(5, 8).double())
    assert torch.equal(module(x, lengths), given)


def test_heads_must_divide_width():
    with pytest.raises(ValueError, match="3 heads"):
        RelativeSelfAttention(8, 3)
