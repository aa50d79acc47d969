"""Exact attention in Triton against its definition, forwards and all gradients."""

import math

import pytest
import torch

from speechattn.kernels.attention.exact import reference
from speechattn.masks import Chunks, chunk_mask, padding_mask

pytest.importorskip("triton")


def kernel(*arguments, **settings):
    from speechattn.kernels.attention.triton.exact import attention

    return attention(*arguments, **settings)


def inputs(lengths, device, queries=None, heads=1, shared=1, depth=8, size=1.0, dtype=torch.float):
    torch.manual_seed(0)
    frames, batch = max(max(lengths), 1), len(lengths)
    shapes = [(batch, queries or frames, heads, depth)]
    shapes += [(batch, frames, heads // shared, depth)] * 2
    tensors = [(size * torch.randn(s)).to(device, dtype).requires_grad_() for s in shapes]
    return tensors, torch.tensor(lengths, device=device)


def definition(q, k, v, seen, sink=None, factor=1.0):
    """With any mask (B, 1, Tq, Tk) and with a sink, in float64; zero where nothing is seen."""
    shared = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(shared, dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[3])
    scores = scores.masked_fill(~seen, -1e300)
    if sink is not None:
        column = sink[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1)[..., : k.shape[1]].masked_fill(~seen, 0.0) * factor
    return torch.einsum("bhij,bjhd->bihd", weights, v)


def compare(expect, got, tensors, tolerance):
    """Outputs and gradients, of double copies of the tensors on one side."""
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    y, z = expect(*doubles), got(*tensors)
    assert torch.isfinite(z).all()
    weight = torch.randn_like(y)
    assert (y - z).abs().max() < tolerance * max(1, y.abs().max())
    expected = torch.autograd.grad((y * weight).sum(), doubles)
    found = torch.autograd.grad((z * weight.to(z.dtype)).sum(), tensors)
    for number, (a, b) in enumerate(zip(expected, found, strict=True)):
        assert torch.isfinite(b).all()
        assert (a - b).abs().max() < tolerance * max(1, a.abs().max()), number
    return z


@pytest.mark.parametrize(
    "lengths, queries, heads", [([33, 0, 16], None, 1), ([20, 0, 1], 17, 2), ([5], 33, 1)], ids=str
)
def test_equals_definition(lengths, queries, heads, device):
    tensors, lengths = inputs(lengths, device, queries, heads=heads, shared=heads)
    real = (lengths > 0)[:, None, None, None]
    y = compare(
        lambda *x: reference(*x, lengths).masked_fill(~real, 0.0),
        lambda *x: kernel(*x, lengths),
        tensors,
        1e-5,
    )
    assert y[~real.flatten()].abs().sum() == 0


@pytest.mark.parametrize(
    "depth, dtype",
    [(20, torch.bfloat16), pytest.param(8, torch.half, marks=pytest.mark.slow)],
    ids=str,
)
def test_halves(depth, dtype, device):
    tensors, lengths = inputs([20, 9], device, depth=depth, dtype=dtype)
    compare(lambda *x: reference(*x, lengths), lambda *x: kernel(*x, lengths), tensors, 0.02)


SPANS = [
    {"chunks": Chunks(1)},
    {"chunks": Chunks(5, 2)},
    {"window": (15, 33)},
    {"window": (3, 0)},
    *(pytest.param(x, marks=pytest.mark.slow)
      for x in ({"chunks": Chunks(40, 0)}, {"chunks": Chunks(3, 40)}, {"window": (0, 20)})),
]  # fmt: skip


@pytest.mark.parametrize("span", SPANS, ids=str)
def test_chunks_and_windows(span, device):
    tensors, lengths = inputs([50, 20], device)
    i = torch.arange(50, device=device)
    if "chunks" in span:
        seen = chunk_mask(50, span["chunks"], device)
    else:
        left, right = span["window"]
        seen = (i >= i[:, None] - left) & (i <= i[:, None] + right)
    real = padding_mask(lengths, 50)
    seen = seen & real[:, None, None] & real[:, None, :, None]
    compare(
        lambda *x: definition(*x, seen),
        lambda *x: kernel(*x, lengths, query_lengths=lengths, **span),
        tensors,
        1e-5,
    )


def test_slopes(device):
    tensors, lengths = inputs([20, 0, 3], device, 17, heads=2, shared=2)
    slopes = torch.tensor([0.7, 0.02], device=device)
    real = (lengths > 0)[:, None, None, None]
    compare(
        lambda *x: reference(*x, lengths, slopes=slopes).masked_fill(~real, 0.0),
        lambda *x: kernel(*x, lengths, slopes=slopes),
        tensors,
        1e-5,
    )


def test_sink(device):
    tensors, lengths = inputs([18, 0, 9], device, heads=2)
    sink = torch.tensor([1.5, -40.0], device=device).requires_grad_()
    seen = (padding_mask(lengths, 18)[:, None, None]).expand(3, 1, 18, 18)
    compare(
        lambda q, k, v, s: definition(q, k, v, seen, s),
        lambda q, k, v, s: kernel(q, k, v, lengths, sink=s),
        [*tensors, sink],
        1e-5,
    )


def test_extreme_scores(device):
    tensors, lengths = inputs([20, 4], device, size=60.0)
    tensors[2] = torch.randn_like(tensors[2]).requires_grad_()
    compare(lambda *x: reference(*x, lengths), lambda *x: kernel(*x, lengths), tensors, 1e-3)
    with torch.no_grad():
        q, k, v = tensors
        y = kernel(1e4 * q, 1e4 * k, v, lengths)
    assert torch.isfinite(y).all() and y.abs().max() <= v.abs().max()


def test_what_stands_in_the_padding(device):
    (q, k, v), lengths = inputs([18, 0, 3], device)
    y = kernel(q, k, v, lengths)
    with torch.no_grad():
        hidden = ~padding_mask(lengths, 18)[..., None, None]
        k, v = (x.masked_fill(hidden, 1e30).requires_grad_() for x in (k, v))
    z = kernel(q, k, v, lengths)
    assert torch.equal(y, z)
    for g in torch.autograd.grad(z.sum(), (k, v)):
        assert torch.isfinite(g).all() and g.masked_select(hidden).abs().max() == 0


def test_dropout(device):
    """The weights that a draw keeps are read off values that are unit vectors."""
    frames = 20
    (q, k, _), lengths = inputs([frames, 12], device, heads=2, depth=frames)
    unit = torch.eye(frames, device=device)[None, :, None].expand(2, frames, 2, frames)
    torch.manual_seed(5)
    drawn = kernel(q, k, unit, lengths, dropout=0.25).detach().permute(0, 2, 1, 3)
    real = padding_mask(lengths, frames)[:, None, None]
    gone = (drawn == 0) & real
    assert gone.sum().item() / (32 * 2 * frames) == pytest.approx(0.25, abs=0.04)
    assert not torch.equal(gone[0, 0], gone[0, 1])
    tensors = [q, k, torch.randn_like(q).requires_grad_()]
    factor = (~gone).double() / 0.75

    def seeded(*x):
        torch.manual_seed(5)
        return kernel(*x, lengths, dropout=0.25)

    seen = real.expand(2, 1, frames, frames)
    compare(lambda *x: definition(*x, seen, factor=factor), seeded, tensors, 1e-5)


def test_no_frames(device):
    q = torch.zeros(2, 0, 2, 8, device=device)
    assert kernel(q, q, q, torch.zeros(2, dtype=torch.long, device=device)).shape == q.shape


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float, 2e-5), (torch.bfloat16, 0.03)], ids=str)
@pytest.mark.parametrize("span", [{}, {"chunks": Chunks(1)}, {"chunks": Chunks(16, 64)}], ids=str)
@pytest.mark.parametrize("depth, shared", [(64, 1), (80, 4), (128, 1)], ids=str)
def test_on_a_gpu(depth, shared, span, dtype, tolerance, device):
    lengths = [700, 0, 513, 1, 128]
    tensors, lengths = inputs(lengths, device, heads=4, shared=shared, depth=depth, dtype=dtype)
    real = padding_mask(lengths, 700)[..., None, None]
    chunks = span.get("chunks")
    compare(
        lambda *x: reference(*x, lengths, chunks=chunks).masked_fill(~real, 0.0),
        lambda *x: kernel(*x, lengths, query_lengths=lengths, **span),
        tensors,
        tolerance,
    )
