"""Relative attention in Triton against its definition, forwards and all gradients."""

import pytest
import torch

from speechattn.kernels.attention.relative import reference
from speechattn.masks import Chunks, padding_mask

pytest.importorskip("triton")
NAMES = ("q", "k", "v", "p", "content_bias", "position_bias")


def kernel(*arguments, **settings):
    from speechattn.kernels.attention.triton.relative import relative_attention

    return relative_attention(*arguments, **settings)


def inputs(lengths, device, heads=1, depth=8, size=1.0, dtype=torch.float):
    torch.manual_seed(0)
    frames = max(max(lengths), 1)
    shapes = [(len(lengths), frames, heads, depth)] * 3
    shapes += [(2 * frames - 1, heads, depth), (heads, depth), (heads, depth)]
    tensors = [(size * torch.randn(s)).to(device, dtype).requires_grad_() for s in shapes]
    return tensors, torch.tensor(lengths, device=device)


def compare(tensors, lengths, tolerance, **settings):
    """With the definition in float64, each to its own size."""
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    y, z = (
        reference(*doubles, lengths=lengths, **settings),
        kernel(*tensors, lengths=lengths, **settings),
    )
    assert torch.isfinite(z).all()
    weight = torch.randn_like(y)
    assert (y - z).abs().max() < tolerance * max(1, y.abs().max())
    expected = torch.autograd.grad((y * weight).sum(), doubles)
    found = torch.autograd.grad((z * weight.to(z.dtype)).sum(), tensors)
    for name, a, b in zip(NAMES, expected, found, strict=True):
        assert torch.isfinite(b).all(), name
        assert (a - b).abs().max() < tolerance * max(1, a.abs().max()), name
    return z


@pytest.mark.parametrize(
    "lengths, splits", [([33, 0, 17], 2), ([1, 16], 4), ([18], 4), ([0, 0], 1)], ids=str
)
def test_equals_definition(lengths, splits, device, monkeypatch):
    """Also where programs go through several items for the gradient of p."""
    from speechattn.kernels.attention.triton import relative

    monkeypatch.setattr(relative, "_SPLITS", splits)
    y = compare(*inputs(lengths, device, heads=2 if lengths == [18] else 1), 2e-5)
    for item, n in zip(y, lengths, strict=True):
        assert item[n:].abs().sum() == 0


CHUNKS = [
    Chunks(1),
    Chunks(5, 13),
    *(pytest.param(x, marks=pytest.mark.slow) for x in (Chunks(40, 0), Chunks(3, 40))),
]


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_chunks(chunks, device):
    compare(*inputs([36], device), 2e-5, chunks=chunks)


@pytest.mark.parametrize(
    "depth, dtype",
    [(20, torch.bfloat16), pytest.param(8, torch.half, marks=pytest.mark.slow)],
    ids=str,
)
def test_halves(depth, dtype, device):
    compare(*inputs([18], device, depth=depth, dtype=dtype), 0.03)


def test_extreme_scores(device):
    tensors, lengths = inputs([18], device, size=60.0)
    tensors[2] = torch.randn_like(tensors[2]).requires_grad_()
    compare(tensors, lengths, 1e-3)
    with torch.no_grad():
        q, k, v, *rest = tensors
        y = kernel(1e4 * q, 1e4 * k, v, *rest, lengths=lengths)
    assert torch.isfinite(y).all() and y.abs().max() <= v.abs().max()


def test_what_stands_in_the_padding(device):
    (q, k, v, *rest), lengths = inputs([3, 18], device)
    y = kernel(q, k, v, *rest, lengths=lengths)
    with torch.no_grad():
        hidden = ~padding_mask(lengths, 18)[..., None, None]
        filled = [x.masked_fill(hidden, 1e30).requires_grad_() for x in (q, k, v)]
    z = kernel(*filled, *rest, lengths=lengths)
    assert torch.equal(y, z)
    for g in torch.autograd.grad(z.sum(), (*filled, *rest)):
        assert torch.isfinite(g).all()


def test_dropout(device):
    """The weights that a draw keeps are read off values that are unit vectors."""
    frames = 18
    (q, k, _, *rest), lengths = inputs([frames], device, depth=frames)
    unit = torch.eye(frames, device=device)[None, :, None].expand(1, frames, 1, frames)

    def seeded(*x):
        torch.manual_seed(5)
        return kernel(*x, lengths=lengths, dropout=0.25)

    drawn = seeded(q, k, unit, *rest).detach()[:, :, 0]
    whole = kernel(q, k, unit, *rest, lengths=lengths).detach()[:, :, 0]
    real = whole > 0
    factor = torch.where(real, drawn / whole, 0.0).round(decimals=3)
    values, counts = factor[real].unique(return_counts=True)
    assert torch.allclose(values, torch.tensor([0, 1.333], device=device))
    assert counts[0] / counts.sum() == pytest.approx(0.25, abs=0.05)

    # Without autograd: the weights of the definition on unit vectors, dropped as drawn.
    def definition(q, k, v, *rest):
        weights = reference(q, k, unit.double(), *rest, lengths=lengths)[:, :, 0]
        return (weights * (drawn > 0) / 0.75) @ v[:, :, 0]

    tensors = [q, k, torch.randn_like(q).requires_grad_(), *rest]
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    y, z = definition(*doubles), seeded(*tensors)[:, :, 0]
    assert torch.allclose(y.float(), z, atol=1e-5)
    weight = torch.randn_like(z)
    expected = torch.autograd.grad((y * weight).sum(), doubles)
    found = torch.autograd.grad((z * weight).sum(), tensors)
    for name, a, b in zip(NAMES, expected, found, strict=True):
        assert (a - b).abs().max() < 2e-5 * max(1, a.abs().max()), name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float, 5e-5), (torch.bfloat16, 0.04)], ids=str)
@pytest.mark.parametrize("chunks", [None, Chunks(1), Chunks(16, 64)], ids=str)
@pytest.mark.parametrize("depth", [64, 80, 128])
def test_on_a_gpu(depth, chunks, dtype, tolerance, device):
    lengths = [700, 0, 513, 1, 128, 64]
    tensors, lengths = inputs(lengths, device, heads=4, depth=depth, size=0.5, dtype=dtype)
    compare(tensors, lengths, tolerance, chunks=chunks)
