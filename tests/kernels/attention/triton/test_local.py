"""Local attention in Triton against its definition, forwards and all gradients."""

import sys

import pytest
import torch

from speechattn.kernels.attention.local import (
    attention_and_totals,
    local_attention,
    reference,
)
from speechattn.kernels.attention.window import AttentionWindow
from speechattn.masks import padding_mask

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv("SPEECHATTN_KERNELS", "triton")


def inputs(lengths, device, heads=1, shared=1, depth=8, dtype=torch.float, sink=False):
    torch.manual_seed(0)
    shape = len(lengths), max(*lengths, 1)
    shapes = [(*shape, heads, depth)] + [(*shape, heads // shared, depth)] * 2
    shapes += [(heads,)] if sink else []
    tensors = [torch.randn(s).to(device, dtype).requires_grad_() for s in shapes]
    return tensors, torch.tensor(lengths, device=device)


def compare(tensors, lengths, window, tolerance):
    """Results, totals and gradients from both, with the definition in float64."""
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    real = padding_mask(lengths, tensors[0].shape[1])[..., None]
    expected = reference(*doubles[:3], lengths, window, 0.0, *doubles[3:])
    expected = [x.masked_fill(~(real if x.dim() == 3 else real[..., None]), 0.0) for x in expected]
    sink = tensors[3] if len(tensors) > 3 else None
    found = attention_and_totals(*tensors[:3], lengths, window=window, sink=sink)
    assert found[0].dtype == tensors[0].dtype and found[1].dtype == torch.float32
    weights = [torch.randn_like(x) for x in expected]
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape and torch.isfinite(b).all()
        assert (a - b).abs().max() < tolerance * max(1, a.abs().max())
        assert b.masked_select(~(real if b.dim() == 3 else real[..., None])).abs().sum() == 0
    for chosen in ([0], [0, 1]):  # without and with a gradient of the totals
        a = sum((expected[i] * weights[i]).sum() for i in chosen)
        b = sum((found[i].double() * weights[i]).sum() for i in chosen)
        a = torch.autograd.grad(a, doubles, retain_graph=True)
        b = torch.autograd.grad(b, tensors, retain_graph=True)
        for number, (g, h) in enumerate(zip(a, b, strict=True)):
            assert torch.isfinite(h).all(), number
            assert (g - h).abs().max() < tolerance * max(1, g.abs().max()), number


WINDOWS = [
    AttentionWindow(2, 2),
    AttentionWindow(20, 0),
    AttentionWindow(3, 5).past(),
    AttentionWindow.from_size(7, stride=3),
    AttentionWindow.from_size(20, stride=20),
    AttentionWindow(9, 9, stride=12).past(),
    AttentionWindow(1, 2, dilation=4),
    AttentionWindow(5, 4, stride=2, dilation=3).past(),
    AttentionWindow(10**12, 10**12),
]
SLOW = [
    AttentionWindow(3, 5).past(),
    AttentionWindow.from_size(20, stride=20),
    AttentionWindow(10**12, 10**12),
]


@pytest.mark.parametrize(
    "window",
    [pytest.param(x, marks=pytest.mark.slow) if x in SLOW else x for x in WINDOWS],
    ids=str,
)
def test_equals_definition(window, device):
    compare(*inputs([34, 0, 18], device), window, 1e-5)


def test_shared_keys_and_a_sink(device):
    window = AttentionWindow(9, 4, stride=2, dilation=2).past()
    compare(*inputs([21, 1], device, heads=4, shared=2, depth=20, sink=True), window, 1e-5)


def test_only_totals(device):
    """With no gradient of the result."""
    (q, k, v), lengths = inputs([18, 3], device)
    window = AttentionWindow(3, 2)
    total = attention_and_totals(q, k, v, lengths, window=window)[1]
    found = torch.autograd.grad(total.sum(), (q, k, v))
    a, b = (x.detach().double().requires_grad_() for x in (q, k))
    total = reference(a, b, v.double(), lengths, window)[1]
    expected = torch.autograd.grad((total * padding_mask(lengths, 18)[..., None]).sum(), (a, b))
    for g, h in zip(expected, found, strict=False):
        assert (g - h).abs().max() < 1e-5
    assert found[2].abs().max() == 0


@pytest.mark.parametrize(
    "window", [AttentionWindow(5, 9), AttentionWindow.from_size(8, stride=4, dilation=2)], ids=str
)
def test_halves(window, device):
    compare(*inputs([20, 9], device, depth=20, dtype=torch.bfloat16), window, 0.02)


@pytest.mark.parametrize(
    "window", [AttentionWindow(3, 3), AttentionWindow(3, 3, dilation=2)], ids=str
)
def test_what_stands_in_the_padding(window, device):
    tensors, lengths = inputs([18, 0, 3], device)
    y = local_attention(*tensors, lengths, window=window)
    hidden = ~padding_mask(lengths, 18)[..., None, None]
    filled = [x.detach().masked_fill(hidden, torch.nan).requires_grad_() for x in tensors]
    z = local_attention(*filled, lengths, window=window)
    assert torch.equal(y, z)
    for g in torch.autograd.grad(z.sum(), filled):
        assert torch.isfinite(g).all() and g.masked_select(hidden).abs().max() == 0


def test_dropout(device):
    """The weights that a draw keeps are read off values that are unit vectors."""
    frames, window = 24, AttentionWindow(5, 5, dilation=2)
    (q, k, _), lengths = inputs([frames, 15], device, heads=2, depth=frames)
    unit = torch.eye(frames, device=device)[None, :, None].expand(2, frames, 2, frames)
    whole = local_attention(q, k, unit, lengths, window=window)
    torch.manual_seed(5)
    drawn = local_attention(q, k, unit, lengths, window=window, dropout=0.25)
    factor = (drawn / whole)[whole > 0].detach().round(decimals=3)
    values, counts = factor.unique(return_counts=True)
    assert torch.allclose(values, torch.tensor([0, 1.333], device=device))
    assert counts[0] / counts.sum() == pytest.approx(0.25, abs=0.05)


def test_is_what_runs(device, monkeypatch):
    (q, k, v), lengths = inputs([5, 3], device)
    from speechattn.kernels.attention.triton import local

    monkeypatch.setattr(local, "local_attention", None)
    with pytest.raises(TypeError):
        local_attention(q, k, v, lengths, window=AttentionWindow(2, 2))
    # Steps and wider numbers have another way.
    local_attention(q[:, -1:], k, v, lengths, window=AttentionWindow(2, 0))
    local_attention(q.double(), k.double(), v.double(), lengths, window=AttentionWindow(2, 2))
    assert "speechattn.kernels.attention.triton.local" in sys.modules


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float, 2e-5), (torch.bfloat16, 0.03)], ids=str)
@pytest.mark.parametrize("window", [AttentionWindow(64, 63), *WINDOWS[3:8]], ids=str)
@pytest.mark.parametrize("depth, shared", [(64, 1), (80, 4)], ids=str)
def test_on_a_gpu(depth, shared, window, dtype, tolerance, device):
    tensors, lengths = inputs([700, 0, 513, 1], device, 4, shared, depth, dtype, sink=True)
    compare(tensors, lengths, window, tolerance)
