"""Block-sparse attention in Triton against its definition, forwards and all gradients."""

import sys

import pytest
import torch

from speechattn.kernels.attention.block_layouts import near_blocks, shards
from speechattn.kernels.attention.block_sparse import block_sparse_attention, reference
from speechattn.masks import padding_mask

pytest.importorskip("triton")


def kernel(*arguments):
    from speechattn.kernels.attention.triton.block_sparse import block_sparse_attention as compute

    return compute(*arguments)


def inputs(lengths, device, queries=None, heads=2, shared=1, depth=8, size=1.0, dtype=torch.float):
    torch.manual_seed(0)
    frames, batch = max(lengths), len(lengths)
    shapes = [(batch, queries or frames, heads, depth)]
    shapes += [(batch, frames, heads // shared, depth)] * 2
    tensors = [(size * torch.randn(s)).to(device, dtype).requires_grad_() for s in shapes]
    return tensors, torch.tensor(lengths, device=device)


def random_layout(q, k, block, each=False, share=0.5):
    """Blocks drawn at random; the second block of queries sees none, nobody sees the third."""
    torch.manual_seed(1)
    shape = q.shape[2], -(-q.shape[1] // block), -(-k.shape[1] // block)
    layout = torch.rand((len(q), *shape) if each else shape) < share
    layout[..., 1, :], layout[..., 2] = False, False
    return layout.to(q.device)


def compare(tensors, tolerance, lengths, layout, block, causal=False, query_lengths=None):
    """Outputs and gradients, against the definition in float64."""
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    y = reference(*doubles, lengths, layout, block=block, causal=causal)
    if query_lengths is not None:
        hidden = ~padding_mask(query_lengths, y.shape[1])[..., None, None]
        y = y.masked_fill(hidden, 0.0)
    z = kernel(*tensors, lengths, layout, block, causal, 0.0, query_lengths)
    assert z.isfinite().all() and z.dtype == tensors[0].dtype
    assert (y - z).abs().max() < tolerance * max(1, y.abs().max())
    assert (z[y == 0] == 0).all()
    weight = torch.randn_like(y)
    expected = torch.autograd.grad((y * weight).sum(), doubles)
    found = torch.autograd.grad((z * weight.to(z.dtype)).sum(), tensors)
    for number, (a, b) in enumerate(zip(expected, found, strict=True)):
        assert b.isfinite().all()
        assert (a - b).abs().max() < tolerance * max(1, a.abs().max()), number


@pytest.mark.parametrize(
    "block, shared, each, causal, share",
    [
        (20, 1, True, False, 0.5),  # two tiles a block, one of them short
        (9, 2, False, True, 1.0),  # more than a tile names, its end within a block
        pytest.param(5, 2, True, False, 0.5, marks=pytest.mark.slow),
        pytest.param(4, 1, False, True, 0.5, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_equals_definition(block, shared, each, causal, share, device):
    tensors, lengths = inputs([43, 0, 18], device, shared=shared)
    layout = random_layout(*tensors[:2], block, each, share)
    compare(tensors, 1e-5, lengths, layout, block, causal)


def test_other_queries_than_keys(device):
    tensors, lengths = inputs([25, 9, 0], device, queries=21)
    layout = random_layout(*tensors[:2], 7, each=True)
    real = torch.tensor([21, 3, 14], device=device)
    compare(tensors, 1e-5, lengths, layout, 7, query_lengths=real)


def test_shards(device):
    """With lengths that end within blocks, of both."""
    tensors, lengths = inputs([22, 9], device)
    layout = near_blocks(6, 0, device) | shards(2, 6, 3, device)
    compare(tensors, 1e-5, lengths, layout, 4, False, lengths)


def test_nothing_named(device):
    tensors, lengths = inputs([9, 4], device)
    compare(tensors, 1e-6, lengths, torch.zeros(2, 3, 3, dtype=torch.bool, device=device), 4)


@pytest.mark.parametrize(
    "depth, dtype",
    [(20, torch.bfloat16), pytest.param(8, torch.half, marks=pytest.mark.slow)],
    ids=str,
)
def test_halves(depth, dtype, device):
    tensors, lengths = inputs([14, 9], device, depth=depth, dtype=dtype)
    compare(tensors, 0.02, lengths, random_layout(*tensors[:2], 5, share=0.8), 5)


def test_extreme_scores_and_padding(device):
    tensors, lengths = inputs([17, 5], device, size=60.0)
    tensors[2] = torch.randn_like(tensors[2]).requires_grad_()
    layout = random_layout(*tensors[:2], 6)
    compare(tensors, 1e-3, lengths, layout, 6)
    q, k, v = tensors
    y = kernel(q, k, v, lengths, layout, 6)
    hidden = ~padding_mask(lengths, 17)[..., None, None]
    k, v = (x.detach().masked_fill(hidden, 1e30).requires_grad_() for x in (k, v))
    z = kernel(q, k, v, lengths, layout, 6)
    assert torch.equal(y, z)
    for g in torch.autograd.grad(z.sum(), (k, v)):
        assert g.isfinite().all() and g.masked_select(hidden).abs().max() == 0


def test_dropout(device):
    """The weights that a draw keeps are read off values that are unit vectors."""
    frames, block = 20, 7
    (q, k, _), lengths = inputs([frames, 12], device, depth=frames)
    layout = random_layout(q, k, block, share=0.8)
    unit = torch.eye(frames, device=device)[None, :, None].expand(2, frames, 2, frames)

    def seeded(v, dropout):
        torch.manual_seed(5)
        return kernel(q, k, v, lengths, layout, block, False, dropout)

    whole = seeded(unit, 0.0).detach().double()
    kept = seeded(unit, 0.25).detach().double()  # (B, T, H, S) weights
    share = ((kept == 0) & (whole > 0)).sum() / (whole > 0).sum()
    assert share.item() == pytest.approx(0.25, abs=0.05)
    factor = torch.where(whole > 0, kept / whole.clamp(min=1e-12), 0.0)
    assert torch.allclose(factor[factor > 0], torch.tensor(1 / 0.75).double(), atol=1e-4)
    v = torch.randn_like(q).requires_grad_()
    doubles = [x.detach().double().requires_grad_() for x in (q, k, v)]
    eye = torch.eye(frames, dtype=torch.double, device=device)[None, :, None]
    weights = reference(*doubles[:2], eye.expand(2, -1, 2, -1), lengths, layout, block=block)
    y = torch.einsum("bihj,bjhd->bihd", weights * factor, doubles[2])
    z = seeded(v, 0.25)
    assert (y - z).abs().max() < 1e-4
    expected = torch.autograd.grad(y.square().sum(), doubles)
    found = torch.autograd.grad(z.square().sum(), (q, k, v))
    for a, b in zip(expected, found, strict=True):
        assert (a - b).abs().max() < 1e-4 * max(1, a.abs().max())


@pytest.mark.parametrize("columns", [5, 1500])
def test_lists(columns, device):
    from speechattn.kernels.attention.triton.block_lists import block_lists

    torch.manual_seed(0)
    layout = torch.rand(1, 2, 3, columns, device=device) < 0.3
    for given in (layout, layout.transpose(2, 3)[:, :, :4]):
        lists, counts = block_lists(given)
        for row, found, count in zip(
            given.flatten(0, 2), lists.flatten(0, 2), counts.flatten(), strict=True
        ):
            assert found[:count].tolist() == row.nonzero()[:, 0].tolist()


def test_the_public_function_comes_here(device, monkeypatch):
    tensors, lengths = inputs([9, 4], device, shared=2)
    layout = random_layout(*tensors[:2], 3, share=0.8)
    results = []
    for name in ("torch", "triton"):
        monkeypatch.setenv("SPEECHATTN_KERNELS", name)
        results.append(
            block_sparse_attention(*tensors, lengths, layout=layout, block=3, query_lengths=lengths)
        )
    torch.testing.assert_close(*results)
    module = sys.modules["speechattn.kernels.attention.triton.block_sparse"]
    monkeypatch.setattr(module, "block_sparse_attention", None)
    with pytest.raises(TypeError):
        block_sparse_attention(*tensors, lengths, layout=layout, block=3)
    doubles = (x.double() for x in tensors)
    block_sparse_attention(*doubles, lengths, layout=layout, block=3)  # without a kernel


def test_no_frames(device):
    q = torch.zeros(2, 0, 2, 8, device=device, requires_grad=True)
    lengths = torch.zeros(2, dtype=torch.long, device=device)
    empty = torch.zeros(2, 0, 0, dtype=torch.bool, device=device)
    y = kernel(q, q, q, lengths, empty, 4)
    assert y.shape == q.shape
    y.sum().backward()
    queries = torch.ones(2, 3, 2, 8, device=device, requires_grad=True)
    y = kernel(queries, q, q, lengths, empty.new_zeros(2, 1, 0), 4)
    y.sum().backward()
    assert (y == 0).all() and (queries.grad == 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float, 2e-5), (torch.bfloat16, 0.03)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [16, 50, 64, 200])
@pytest.mark.parametrize("depth, shared", [(64, 1), (80, 4)], ids=str)
def test_on_a_gpu(depth, shared, block, causal, dtype, tolerance, device):
    tensors, lengths = inputs([700, 0, 513, 1], device, None, 4, shared, depth, 1.0, dtype)
    layout = random_layout(*tensors[:2], block, each=True)
    compare(tensors, tolerance, lengths, layout, block, causal, lengths)
