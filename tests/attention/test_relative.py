"""Relative self-attention against loops over i and j, written from 1901.02860 section 3.3."""

import math

import pytest
import torch

from speechattn.attention.positions import relative_positions
from speechattn.attention.relative import RelativeSelfAttention
from speechattn.masks import Chunks


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


@pytest.mark.parametrize("chunks", [Chunks(1), Chunks(3, 4), Chunks(4, 0), Chunks(90)], ids=str)
def test_steps_equal_chunks(chunks):
    module, frames = build().eval(), 140
    x = torch.randn(2, frames, 8, dtype=torch.double)
    expected = module(x, torch.tensor([frames, frames]), chunks=chunks)
    cache, outputs = module.init_state(2), []
    for start in range(0, frames, chunks.size):
        y, cache = module.step(x[:, start : start + chunks.size], cache)
        outputs.append(y)
        if chunks.left >= 0:
            cache = cache.keep(chunks.left)
            assert cache.frames <= chunks.left
    assert cache.start + cache.frames == frames
    # The steps' sinusoids come from longer tables; both are rounded to float32.
    assert torch.allclose(torch.cat(outputs, 1), expected, atol=1e-6)


def test_steps_project_the_sinusoids_once():
    module = build().eval()
    calls = []
    module.position.register_forward_hook(lambda *_: calls.append(1))
    cache = module.init_state(1)
    for _ in range(300):
        cache = module.step(torch.randn(1, 1, 8, dtype=torch.double), cache)[1].keep(10)
    assert len(calls) == 1


def test_dropout_in_training_only():
    torch.manual_seed(0)
    module, x = RelativeSelfAttention(8, 2, dropout=0.5), torch.randn(1, 6, 8)
    lengths = torch.tensor([6])
    assert not torch.allclose(module(x, lengths), module(x, lengths))
    module.eval()
    assert torch.equal(module(x, lengths), module(x, lengths))


def test_names_of_parameters():
    """Models that were saved before load still."""
    linear = [f"{n}.{p}" for n in ("query", "key", "value", "output") for p in ("weight", "bias")]
    assert set(RelativeSelfAttention(8, 2).state_dict()) == {
        *linear, "position.weight", "content_bias", "position_bias",
    }  # fmt: skip
