"""Gated linear attention against products of gates written out, and against its recurrence."""

import math

import pytest
import torch

from speechattn.kernels.attention import gated_linear as module
from speechattn.kernels.attention.gated_linear import (
    gated_linear_attention,
    gated_linear_attention_step,
    reference,
)
from speechattn.kernels.attention.linear import linear_attention, linear_attention_state
from speechattn.masks import padding_mask

H, DK, DV = 2, 3, 4
LENGTHS = [[1], [4, 0, 13, 12, 1], [0, 0], [3, 9]]


def inputs(lengths, frames=None, gate=0.5, dtype=torch.double, heads=H, dk=DK, dv=DV):
    """Operands; gates from a little above minus twice `gate` to 0."""
    torch.manual_seed(0)
    frames = max(*lengths, 1) if frames is None else frames
    q, k, v, g = (
        torch.randn(len(lengths), frames, heads, d, dtype=dtype) for d in (dk, dk, dv, dk)
    )
    g = -gate * 2 * torch.rand_like(g)
    return [x.requires_grad_() for x in (q, k, v, g)], torch.tensor(lengths)


def written_out(q, k, v, gates, lengths, causal):
    """Every pair of frames with the product of the gates between them."""
    batch, frames, heads, _ = q.shape
    left = gates.exp()
    items = []
    for b, n in enumerate(lengths.tolist()):
        rows = []
        for i in range(frames):
            total = torch.zeros(heads, v.shape[3], dtype=v.dtype)
            for j in range(n if i < n else 0):
                if j <= i:
                    between = left[b, j + 1 : i + 1].prod(0)  # (H, Dk)
                elif causal:
                    continue
                else:
                    between = left[b, i:j].prod(0)
                total = total + (q[b, i] * k[b, j] * between).sum(-1, keepdim=True) * v[b, j]
            rows.append(total)
        items.append(torch.stack(rows))
    return torch.stack(items)


def gradients(y, tensors):
    torch.manual_seed(5)
    return torch.autograd.grad(
        y, tensors, torch.randn(y.shape).to(y), retain_graph=True, materialize_grads=True
    )


def assert_same_gradients(y, expected, tensors, **tolerance):
    for one, other in zip(gradients(y, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.fixture(params=[4, 64], ids="block of {}".format)
def block(request, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", request.param)


@pytest.fixture(params=["middle", "halves"])
def form(request, monkeypatch):
    """Which of the two forms of a block runs."""
    monkeypatch.setattr(module, "SPAN", 1e9 if request.param == "middle" else -1.0)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_products_of_gates(lengths, causal, block, form, monkeypatch):
    tensors, lengths = inputs(lengths, frames=14)
    expected = written_out(*tensors, lengths, causal)
    for backend in ("reference", "torch"):
        monkeypatch.setenv("SPEECHATTN_KERNELS", backend)
        y = gated_linear_attention(*tensors, lengths, causal=causal)
        torch.testing.assert_close(y, expected)
        if lengths.any():
            assert_same_gradients(y, expected, tensors)


@pytest.mark.parametrize("gate", [0.04, 0.5, 3.0])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
def test_many_blocks(causal, gate):
    """As the package runs it, no item ends on a block; gates of a new model and strong ones."""
    tensors, lengths = inputs([130, 0, 330, 64], gate=gate)
    y = gated_linear_attention(*tensors, lengths, causal=causal)
    expected = reference(*tensors, lengths, causal)
    torch.testing.assert_close(y, expected)
    assert_same_gradients(y, expected, tensors)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
def test_gradcheck(causal, block, form):
    tensors, lengths = inputs([6, 5, 0])
    assert torch.autograd.gradcheck(
        lambda *x: gated_linear_attention(*x, lengths, causal=causal), tensors, fast_mode=True
    )


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
@pytest.mark.parametrize("kind", ["closed", "all closed", "mixed", "a close call", "open"])
def test_extreme_gates(kind, causal):
    """In float32, against float64 frame by frame."""
    tensors, lengths = inputs([200, 77], dtype=torch.float, gate=0.05)
    with torch.no_grad():
        g = tensors[3]
        if kind == "closed":  # one frame forgets all; what follows is remembered as ever
            g[:, 70:72], g[:, 10] = -1e30, -math.inf
        elif kind == "all closed":
            g.fill_(-1e4)
        elif kind == "mixed":  # channels of one head differ by 30 orders of magnitude
            g[..., 0], g[..., 1], g[:, ::7, :, 2] = -1e-30, -90.0, -25.0
        elif kind == "a close call":  # a block's sum just within and just beyond the span
            g[:, :64], g[:, 64:] = -module.SPAN / 64 + 1e-4, -module.SPAN / 64 - 1e-4
        else:
            g.zero_()
    y = gated_linear_attention(*tensors, lengths, causal=causal)
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    expected = reference(*doubles, lengths, causal)
    assert y.isfinite().all()
    torch.testing.assert_close(y.double(), expected, atol=3e-4, rtol=1e-4)
    for one, other in zip(gradients(y, tensors), gradients(expected, doubles), strict=True):
        assert one.isfinite().all()
        scale = other.abs().max().clamp(min=1).item()
        torch.testing.assert_close(one.double(), other, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
def test_gates_of_one_number_are_fixed_decay(causal):
    """Against the kernel of linear attention, all gates of a head alike."""
    tensors, lengths = inputs([150, 90, 0])
    decay = torch.tensor([-0.3, -0.001])
    gates = decay.double()[:, None].expand_as(tensors[1])
    y = gated_linear_attention(*tensors[:3], gates, lengths, causal=causal)
    expected = linear_attention(*tensors[:3], lengths, decay=decay, causal=causal)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
def test_padding_is_not_read(causal, block, form):
    tensors, lengths = inputs([3, 10, 0])
    hidden = ~padding_mask(lengths, 10)[..., None, None]
    spoilt = [x.detach().masked_fill(hidden, math.nan).requires_grad_() for x in tensors]
    y = gated_linear_attention(*tensors, lengths, causal=causal)
    z = gated_linear_attention(*spoilt, lengths, causal=causal)
    assert torch.equal(y, z) and (y.masked_select(hidden) == 0).all()
    for one, other in zip(gradients(y, tensors), gradients(z, spoilt), strict=True):
        assert torch.equal(one, other) and (one.masked_select(hidden) == 0).all()


@pytest.mark.parametrize("sizes", [[1] * 14, [4, 0, 9, 1], [14]], ids=str)
def test_steps_equal_the_whole(sizes, block, form):
    tensors, _ = inputs([14, 14])
    expected = gated_linear_attention(*tensors, torch.tensor([14, 14]))
    state, parts, start = linear_attention_state(tensors[0], tensors[2]), [], 0
    shape = state.shape
    for size in sizes:
        piece = [x[:, start : start + size] for x in tensors]
        y, state = gated_linear_attention_step(*piece, state)
        parts.append(y)
        assert y.shape[1] == size and state.shape == shape
        start += size
    torch.testing.assert_close(torch.cat(parts, 1), expected)


def kept(frames):
    """Numbers that wait for the backward pass."""
    tensors, lengths = inputs([frames], dtype=torch.float, dk=16, dv=16)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (sizes.append(x.numel()), x)[1], lambda x: x
    ):
        gated_linear_attention(*tensors, lengths)
    return sum(sizes)


def test_what_is_kept_is_linear():
    """The operands, and a state for each block."""
    operand = 1024 * H * 16
    assert kept(1024) == 4 * operand + operand * 16 // module.BLOCK
    assert kept(4096) == 4 * kept(1024)


def test_halves_and_autocast():
    tensors, lengths = inputs([300, 0, 77], dtype=torch.float, gate=0.05, dk=16, dv=16)
    exact = gated_linear_attention(*tensors, lengths)
    halves = [x.detach().bfloat16().requires_grad_() for x in tensors[:3]]
    y = gated_linear_attention(*halves, tensors[3], lengths)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, atol=1.0, rtol=0.05)
    assert (y - exact).square().mean() < 1e-4 * exact.square().mean()
    assert [g.dtype for g in gradients(y, [*halves, tensors[3]])] == [torch.bfloat16] * 3 + [
        torch.float
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = gated_linear_attention(*tensors, lengths)
    assert torch.equal(y, z)


def test_gates_that_do_not_go():
    (q, k, v, g), lengths = inputs([4])
    with pytest.raises(ValueError, match="each channel of the keys"):
        gated_linear_attention(q, k, v, g[..., :1], lengths)
