"""Gated linear attention in Triton against its definition, forwards and all gradients."""

import math

import pytest
import torch

from speechattn.kernels.attention.gated_linear import gated_linear_attention, reference
from speechattn.masks import padding_mask

pytest.importorskip("triton")
NAMES = ("q", "k", "v", "gates")


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv("SPEECHATTN_KERNELS", "triton")


def inputs(lengths, device, depths=(8, 8), heads=1, dtype=torch.float, strength=0.1):
    torch.manual_seed(0)
    frames, depth, width = max(*lengths, 1), *depths
    shapes = [(len(lengths), frames, heads, d) for d in (depth, depth, width, depth)]
    tensors = [torch.randn(s) for s in shapes]
    tensors[3] = strength * torch.nn.functional.logsigmoid(tensors[3])
    dtypes = (dtype, dtype, dtype, torch.float)
    tensors = [x.to(device, d).requires_grad_() for x, d in zip(tensors, dtypes, strict=True)]
    return tensors, torch.tensor(lengths, device=device)


def compare(tensors, lengths, tolerance, causal=True):
    """With the definition in float64, each to its own size."""
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    y = reference(*doubles, lengths, causal)
    z = gated_linear_attention(*tensors, lengths, causal=causal)
    assert z.dtype == tensors[2].dtype and torch.isfinite(z).all()
    assert (y - z).abs().max() < tolerance * max(1, y.abs().max())
    weight = torch.randn_like(y)
    expected = torch.autograd.grad((y * weight).sum(), doubles)
    found = torch.autograd.grad((z * weight.to(z.dtype)).sum(), tensors)
    for name, a, b, x in zip(NAMES, expected, found, tensors, strict=True):
        assert b.dtype == x.dtype and torch.isfinite(b).all(), name
        assert (a - b).abs().max() < tolerance * max(1, a.abs().max()), name
    return z


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("strength", [0.1, 20.0], ids=["open", "strong"])
def test_equals_definition(strength, causal, device):
    """Open gates take one form within a block, strong ones the other."""
    lengths = [34, 0, 16, 1] if strength < 1 else [17, 0]
    y = compare(*inputs(lengths, device, heads=1 + causal, strength=strength), 1e-5, causal)
    assert y[1].abs().max() == 0 and y[2:, 16:].abs().sum() == 0


@pytest.mark.parametrize(
    "strength", [0.3, pytest.param(20.0, marks=pytest.mark.slow)], ids=["open", "strong"]
)
def test_widths(strength, device):
    """The state wider than a program's columns, and neither a power of two."""
    compare(*inputs([18], device, depths=(20, 37), strength=strength), 1e-5)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("strength", [0.1, 20.0], ids=["open", "strong"])
def test_halves(strength, causal, device):
    lengths = [20, 9] if strength < 1 else [10]
    compare(*inputs(lengths, device, dtype=torch.bfloat16, strength=strength), 0.03, causal)


@pytest.mark.slow
def test_float16(device):
    compare(*inputs([20, 9], device, dtype=torch.half), 0.005)


@pytest.mark.parametrize(
    "causal", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["causal", "both sides"]
)
def test_closed_gates(causal, device):
    """What open gates let through after closed ones is not washed out; and a gradient is none."""
    tensors, lengths = inputs([23], device, strength=0.01)
    with torch.no_grad():
        tensors[3][:, ::5, :, ::2] = -math.inf
        tensors[3][:, 3::7, :, 1] = -1e4
        tensors[3][:, 5::8, :, 3] = -30.0
    q, k, v, gates = tensors
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    y = reference(*doubles, lengths, causal)
    z = gated_linear_attention(*tensors, lengths, causal=causal)
    assert (y - z).abs().max() < 1e-5 * y.abs().max()
    weight = torch.randn_like(y)
    expected = torch.autograd.grad((y * weight).sum(), doubles[:3])
    found = torch.autograd.grad((z * weight.float()).sum(), tensors)
    for a, b in zip(expected, found, strict=False):
        assert (a - b).abs().max() < 1e-5 * a.abs().max()
    assert torch.isfinite(found[3]).all() and found[3][gates < -50].abs().max() == 0
    # The definition has no gradient at minus infinity: from the next best number.
    doubles[3] = doubles[3].detach().clamp(min=-1e5).requires_grad_()
    y = reference(*doubles, lengths, causal)
    (a,) = torch.autograd.grad((y * weight).sum(), doubles[3])
    assert (a - found[3]).abs().max() < 1e-5 * a.abs().max()


def test_what_stands_in_the_padding(device):
    tensors, lengths = inputs([5, 20], device)
    hidden = ~padding_mask(lengths, 20)[..., None, None]
    for causal in (True, False):
        y = gated_linear_attention(*tensors, lengths, causal=causal)
        filled = [x.detach().masked_fill(hidden, math.nan).requires_grad_() for x in tensors]
        z = gated_linear_attention(*filled, lengths, causal=causal)
        assert torch.equal(y, z) and z[0, 5:].abs().max() == 0
        for g in torch.autograd.grad(z.sum(), filled):
            assert torch.isfinite(g).all() and g[0, 5:].abs().max() == 0


def test_is_what_runs(device, monkeypatch):
    (q, k, v, gates), lengths = inputs([5, 3], device)
    from speechattn.kernels.attention.triton import gated_linear

    monkeypatch.setattr(gated_linear, "gated_linear_attention", None)
    with pytest.raises(TypeError):
        gated_linear_attention(q, k, v, gates, lengths)
    gated_linear_attention(q.double(), k, v.double(), gates, lengths)  # without a kernel


def test_no_frames(device):
    q = torch.zeros(2, 0, 2, 8, device=device, requires_grad=True)
    y = gated_linear_attention(q, q, q, q, torch.zeros(2, dtype=torch.long, device=device))
    assert y.shape == q.shape
    y.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float, 5e-5), (torch.bfloat16, 0.04)], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("strength", [0.06, 20.0], ids=["open", "strong"])
@pytest.mark.parametrize("depths", [(64, 64), (128, 128), (80, 96)], ids=str)
def test_on_a_gpu(depths, strength, causal, dtype, tolerance, device):
    tensors, lengths = inputs([700, 0, 513, 64], device, depths, 3, dtype, strength)
    compare(tensors, lengths, tolerance, causal)
