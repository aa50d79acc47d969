"""Rotary self-attention against complex numbers, written from 2104.09864 section 3.2."""

import pytest
import torch

from speechattn.attention import SoftmaxSelfAttention
from speechattn.attention.rotary import rotate
from speechattn.masks import Chunks


def turned(x, first=0):
    """(T, Dh): pairs of channels (r, r + Dh/2) as complex numbers, times e^(i angle)."""
    half = x.shape[1] // 2
    rate = torch.tensor([10000 ** (-2 * r / x.shape[1]) for r in range(half)]).double()
    index = torch.arange(first, first + len(x)).double()
    z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(
        torch.ones(len(x), half).double(), index[:, None] * rate
    )
    return torch.cat((z.real, z.imag), -1)


def brute_force(module, x):
    """One item, (T, D)."""
    heads = module.heads
    q, k, v = (f(x).unflatten(-1, (heads, -1)) for f in (module.query, module.key, module.value))
    outputs = []
    for h in range(heads):
        scores = turned(q[:, h]) @ turned(k[:, h]).T / q.shape[-1] ** 0.5
        outputs.append(scores.softmax(-1) @ v[:, h])
    return module.output(torch.cat(outputs, -1))


def build(width=12, heads=3):
    torch.manual_seed(0)
    return SoftmaxSelfAttention(width, heads).double()


@pytest.mark.parametrize("lengths", [[1], [6], [5, 3], [4, 0, 1]], ids=str)
def test_equals_brute_force_and_gradients(lengths):
    module = build()
    x = torch.randn(len(lengths), max(lengths), 12, dtype=torch.double, requires_grad=True)
    y = module(x, torch.tensor(lengths))
    expected = [brute_force(module, x[b, :n]) for b, n in enumerate(lengths)]
    for b, n in enumerate(lengths):
        assert torch.allclose(y[b, :n], expected[b], atol=1e-6)  # angles are float32
    weights = [torch.randn_like(e) for e in expected]
    leaves = (x, *module.parameters())
    losses = (
        sum((y[b, : len(w)] * w).sum() for b, w in enumerate(weights)),
        sum((e * w).sum() for e, w in zip(expected, weights, strict=True)),
    )
    ours, theirs = (torch.autograd.grad(loss, leaves) for loss in losses)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_scores_go_by_distance():
    q, k = torch.randn(2, 1, 1, 1, 8).double()
    scores = [(rotate(q, i) * rotate(k, i - 7)).sum().item() for i in (7, 10, 500, 20000)]
    assert scores == pytest.approx([scores[0]] * 4, abs=1e-2)
    assert abs(scores[0] - (q * k).sum().item()) > 1e-2


def test_padding_does_not_matter():
    module, lengths = build().float(), torch.tensor([9, 2, 5])
    x = torch.randn(3, 9, 12)
    y = module(x, lengths)
    for b, n in enumerate(lengths.tolist()):
        alone = module(x[b : b + 1, :n], lengths[b : b + 1])
        assert torch.allclose(y[b, :n], alone[0], atol=1e-5)


@pytest.mark.parametrize("chunks", [Chunks(1), Chunks(3, 4), Chunks(4, 0), Chunks(20)], ids=str)
def test_steps_equal_chunks(chunks):
    module = build().eval()
    x = torch.randn(2, 14, 12).double()
    expected = module(x, torch.tensor([14, 14]), chunks=chunks)
    cache, outputs = module.init_state(2), []
    for start in range(0, 14, chunks.size):
        y, cache = module.step(x[:, start : start + chunks.size], cache)
        outputs.append(y)
        if chunks.left >= 0:
            cache = cache.keep(chunks.left)
            assert cache.frames <= chunks.left
    assert cache.start + cache.frames == 14
    assert torch.allclose(torch.cat(outputs, 1), expected, atol=1e-9)


def test_dropout_in_training_only():
    torch.manual_seed(0)
    module, x = SoftmaxSelfAttention(8, 2, dropout=0.5), torch.randn(1, 6, 8)
    lengths = torch.tensor([6])
    assert not torch.allclose(module(x, lengths), module(x, lengths))
    module.eval()
    assert torch.equal(module(x, lengths), module(x, lengths))


def test_heads_of_even_width():
    with pytest.raises(ValueError, match="4 heads"):
        SoftmaxSelfAttention(12, 4)
