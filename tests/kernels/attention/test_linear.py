"""Linear attention against its sum written out, pair of frames by pair of frames."""

import math
import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speechattn.kernels.attention import linear as module
from speechattn.kernels.attention.linear import (
    linear_attention,
    linear_attention_state,
    linear_attention_step,
    reference,
)
from speechattn.masks import padding_mask

H, DK, DV = 2, 3, 5
DECAY = torch.tensor([-0.4, 0.0])
LENGTHS = [[1], [4, 0, 13, 12, 1], [8, 8], [0, 0], [3, 9]]


def inputs(lengths, frames=None, dtype=torch.double, heads=H, dk=DK, dv=DV):
    torch.manual_seed(0)
    frames = max(*lengths, 1) if frames is None else frames
    tensors = [torch.randn(len(lengths), frames, heads, d, dtype=dtype) for d in (dk, dk, dv)]
    return [x.requires_grad_() for x in tensors], torch.tensor(lengths)


def written_out(q, k, v, lengths, decay=None, causal=True, normalise=False):
    """Loops over items, heads and pairs of frames."""
    y = torch.zeros(v.shape, dtype=v.dtype)
    rows = []
    for b, n in enumerate(lengths.tolist()):
        for i in range(n):
            for h in range(q.shape[2]):
                total, weights = 0.0, 0.0
                for j in range(i + 1 if causal else n):
                    kept = 1.0 if decay is None else math.exp(decay[h].item() * abs(i - j))
                    weight = kept * torch.dot(q[b, i, h], k[b, j, h])
                    total, weights = total + weight * v[b, j, h], weights + weight
                rows.append(((b, i, h), total / weights if normalise else total))
    for (b, i, h), row in rows:
        y = y.index_put(tuple(torch.tensor(x) for x in (b, i, h)), row)
    return y


def gradients(y, tensors):
    torch.manual_seed(5)
    return torch.autograd.grad(
        y, tensors, torch.randn(y.shape).to(y), retain_graph=True, materialize_grads=True
    )


@pytest.fixture(params=[4, 128], ids="block of {}".format)
def block(request, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", request.param)


@pytest.mark.parametrize("decay", [DECAY, None], ids=["decay", "none"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_the_sum(lengths, causal, decay, block, monkeypatch):
    """Both ways of computing, their outputs and gradients."""
    tensors, lengths = inputs(lengths, frames=14)
    expected = written_out(*tensors, lengths, decay, causal)
    for backend in ("reference", "torch"):
        monkeypatch.setenv("SPEECHATTN_KERNELS", backend)
        y = linear_attention(*tensors, lengths, decay=decay, causal=causal)
        torch.testing.assert_close(y, expected)
        if lengths.any():
            for one, other in zip(gradients(y, tensors), gradients(expected, tensors), strict=True):
                torch.testing.assert_close(one, other)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
def test_normalised(causal, block):
    tensors, lengths = inputs([9, 0, 6])
    tensors = [tensors[0].detach().exp(), tensors[1].detach().exp(), tensors[2].detach()]
    tensors = [x.requires_grad_() for x in tensors]
    expected = written_out(*tensors, lengths, DECAY, causal, normalise=True)
    y = linear_attention(*tensors, lengths, decay=DECAY, causal=causal, normalise=True)
    torch.testing.assert_close(y, expected)
    for one, other in zip(gradients(y, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
def test_normalised_weights_sum_to_one(causal):
    (q, k, _), lengths = inputs([300, 140])
    y = linear_attention(q.exp(), k.exp(), torch.ones(2, 300, H, 1).double(), lengths, decay=DECAY,
                         causal=causal, normalise=True)  # fmt: skip
    real = padding_mask(lengths, 300)
    torch.testing.assert_close(y[real], torch.ones_like(y[real]))
    assert (y[~real] == 0).all()


@pytest.mark.parametrize("decay", [DECAY, None], ids=["decay", "none"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
def test_many_blocks(causal, decay):
    """As the package runs it, several blocks, the last not full, no item ends on a block."""
    tensors, lengths = inputs([130, 700, 0, 257, 128])
    y = linear_attention(*tensors, lengths, decay=decay, causal=causal)
    expected = reference(*tensors, lengths=lengths, decay=decay, causal=causal)
    torch.testing.assert_close(y, expected)
    for one, other in zip(gradients(y, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
def test_gradcheck(causal, block):
    tensors, lengths = inputs([6, 5, 0])
    assert torch.autograd.gradcheck(
        lambda *x: linear_attention(*x, lengths, decay=DECAY, causal=causal),
        tensors,
        fast_mode=True,
    )


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
@pytest.mark.parametrize("decay", [DECAY, None], ids=["decay", "none"])
def test_padding_is_not_read(decay, causal, block):
    tensors, lengths = inputs([3, 10, 0])
    hidden = ~padding_mask(lengths, 10)[..., None, None]
    spoilt = [x.detach().masked_fill(hidden, math.nan).requires_grad_() for x in tensors]
    y = linear_attention(*tensors, lengths, decay=decay, causal=causal)
    z = linear_attention(*spoilt, lengths, decay=decay, causal=causal)
    assert torch.equal(y, z) and (y.masked_select(hidden) == 0).all()
    for one, other in zip(gradients(y, tensors), gradients(z, spoilt), strict=True):
        assert torch.equal(one, other) and (one.masked_select(hidden) == 0).all()


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
def test_order_of_items_and_strides(causal, block):
    """Heads first in memory, items in any order."""
    tensors, lengths = inputs([5, 12, 0, 9])
    y = linear_attention(*tensors, lengths, decay=DECAY, causal=causal)
    order = torch.tensor([2, 3, 1, 0])
    turned = [x[order].transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    z = linear_attention(*turned, lengths[order], decay=DECAY, causal=causal)
    torch.testing.assert_close(z, y[order])


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
def test_decay_of_any_strength(causal):
    """Over 5,000 frames in float32: neither exp(g T) nor its inverse may show."""
    tensors, lengths = inputs([5000, 3100], dtype=torch.float, heads=4)
    decay = torch.tensor([-1e30, -60.0, -1e-2, -1e-6])
    y = linear_attention(*tensors, lengths, decay=decay, causal=causal)
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    z = linear_attention(*doubles, lengths, decay=decay, causal=causal)
    assert y.isfinite().all()
    torch.testing.assert_close(y.double(), z, atol=1e-3, rtol=1e-4)
    own = (tensors[0] * tensors[1]).sum(-1, keepdim=True) * tensors[2]
    torch.testing.assert_close(y[0, :, :2], own[0, :, :2])
    for one, other in zip(gradients(y, tensors), gradients(z, doubles), strict=True):
        assert one.isfinite().all() and other.isfinite().all()


@pytest.mark.parametrize("normalise", [False, True], ids=["", "normalised"])
@pytest.mark.parametrize("decay", [DECAY, None], ids=["decay", "none"])
@pytest.mark.parametrize("sizes", [[1] * 14, [4, 0, 9, 1], [14]], ids=str)
def test_steps_equal_the_whole(sizes, decay, normalise, block):
    (q, k, v), _ = inputs([14, 14])
    q, k = q.detach().exp(), k.detach().exp()
    expected = linear_attention(q, k, v, torch.tensor([14, 14]), decay=decay, normalise=normalise)
    state, parts, start = linear_attention_state(q, v, normalise), [], 0
    shape = state.shape
    for size in sizes:
        piece = [x[:, start : start + size] for x in (q, k, v)]
        y, state = linear_attention_step(*piece, state, decay=decay, normalise=normalise)
        parts.append(y)
        assert y.shape[1] == size and state.shape == shape
        start += size
    torch.testing.assert_close(torch.cat(parts, 1), expected)


class Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return result


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
def test_nothing_larger_than_the_operands(causal):
    tensors, lengths = inputs([4000, 2000], dtype=torch.float, dk=16, dv=16)
    kept = []
    with (
        Largest() as seen,
        torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x),
    ):
        linear_attention(*tensors, lengths, decay=DECAY, causal=causal).sum().backward()
    assert seen.numel <= tensors[0].numel()
    assert sum(x.numel() for x in kept) <= 3 * tensors[0].numel() + 100


def test_halves():
    tensors, lengths = inputs([300, 0, 77], dtype=torch.bfloat16, dk=16, dv=16)
    y = linear_attention(*tensors, lengths, decay=DECAY)
    exact = linear_attention(*(x.double() for x in tensors), lengths, decay=DECAY)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, atol=1e-2, rtol=1e-2)
    assert all(g.dtype == torch.bfloat16 for g in gradients(y, tensors))


def test_autocast():
    tensors, lengths = inputs([40, 33], dtype=torch.float)
    exact = linear_attention(*tensors, lengths, decay=DECAY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear_attention(*tensors, lengths, decay=DECAY)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, atol=0.2, rtol=0.05)
    assert all(g.dtype == torch.float for g in gradients(y, tensors))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton interpreted")
@pytest.mark.parametrize(
    "causal, decay, normalise", [(True, DECAY, True), (True, None, False), (False, DECAY, False)]
)
def test_triton_gives_the_same(causal, decay, normalise, monkeypatch):
    """Through the public function; its kernel has tests of its own."""
    pytest.importorskip("triton")
    tensors, lengths = inputs([5, 0, 20], dtype=torch.float, dk=8, dv=8)
    tensors = [x.detach().abs().requires_grad_() for x in tensors]
    results = []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("SPEECHATTN_KERNELS", backend)
        y = linear_attention(*tensors, lengths, decay=decay, causal=causal, normalise=normalise)
        results.append((y, *gradients(y, tensors)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
@pytest.mark.parametrize("batch, frames", [(2, 0), (0, 5)])
def test_nothing_at_all(batch, frames, causal):
    q, k, v = (torch.randn(batch, frames, H, d, requires_grad=True) for d in (DK, DK, DV))
    y = linear_attention(q, k, v, torch.zeros(batch, dtype=torch.int64), decay=DECAY, causal=causal)
    assert y.shape == v.shape
    y.sum().backward()


def test_decay_that_does_not_go():
    tensors, lengths = inputs([4])
    with pytest.raises(ValueError, match="each of 2 heads"):
        linear_attention(*tensors, lengths, decay=torch.zeros(3))
    with pytest.raises(ValueError, match="at most 0"):
        linear_attention(*tensors, lengths, decay=torch.tensor([-1.0, 0.5]))
