"""Attention over chosen blocks: against torch's own with a mask, and against the definition."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from speechattn.kernels.attention import block_sparse as module
from speechattn.kernels.attention.block_layouts import near_blocks, shards, top_blocks
from speechattn.kernels.attention.block_sparse import block_sparse_attention
from speechattn.kernels.backend import VARIABLE

LENGTHS = torch.tensor([22, 9, 0, 13])
HEADS, BLOCK, BLOCKS = 4, 4, 6


def inputs(kv_heads=HEADS, dtype=torch.float64):
    torch.manual_seed(0)
    q = torch.randn(4, 22, HEADS, 5, dtype=dtype)
    k, v = torch.randn(2, 4, 22, kv_heads, 5, dtype=dtype)
    return q, k, v


def random_layout(batch: bool):
    torch.manual_seed(1)
    shape = (4, HEADS, BLOCKS, BLOCKS) if batch else (HEADS, BLOCKS, BLOCKS)
    layout = torch.rand(shape) < 0.4
    layout[..., 2, :] = False  # queries that see nothing
    return layout


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("kv_heads", "batch"), [(4, False), (2, True)])
def test_it_is_masked_attention(kv_heads, batch, causal, backend, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    monkeypatch.setattr(module, "_AT_ONCE", dict.fromkeys(("cpu", "cuda"), 2000))
    q, k, v = inputs(kv_heads)
    layout = random_layout(batch)
    y = block_sparse_attention(q, k, v, LENGTHS, layout=layout, block=BLOCK, causal=causal)
    for b, n in enumerate(LENGTHS.tolist()):
        own = layout[b] if batch else layout
        seen = torch.kron(own.long(), torch.ones(BLOCK, BLOCK).long())[:, :22, :22].bool()
        seen = seen & (torch.arange(22) < n)
        if causal:
            seen = seen & torch.ones(22, 22, dtype=torch.bool).tril()
        one, two, three = (x[b].transpose(0, 1) for x in (q, k, v))
        two, three = (x.repeat_interleave(HEADS // kv_heads, 0) for x in (two, three))
        expected = scaled_dot_product_attention(one, two, three, attn_mask=seen)
        expected = expected.nan_to_num(0.0) * seen.any(-1, keepdim=True)
        torch.testing.assert_close(y[b], expected.transpose(0, 1))


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_equal_the_definition(causal, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", dict.fromkeys(("cpu", "cuda"), 2000))
    given = [x.requires_grad_() for x in inputs()]
    found = []
    for backend in ("reference", "torch"):
        monkeypatch.setenv(VARIABLE, backend)
        y = block_sparse_attention(
            *given, LENGTHS, layout=random_layout(True), block=BLOCK, causal=causal
        )
        found.append(torch.autograd.grad(y.square().sum(), given))
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)


def test_gradients_with_dropout():
    """Of the weights that dropout left, which a difference quotient finds as well."""
    q, k, v = (x.requires_grad_() for x in inputs(kv_heads=2))

    def loss(value: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        y = block_sparse_attention(
            q, k, value, LENGTHS, layout=random_layout(True), block=BLOCK, causal=False, dropout=0.5
        )
        return y.square().sum()

    found = torch.autograd.grad(loss(v), (q, k, v))
    assert all(x.isfinite().all() for x in found)
    step = torch.zeros_like(v)
    step[0, 3, 1, 2] = 1e-6
    slope = (loss(v + step) - loss(v - step)) / 2e-6
    torch.testing.assert_close(found[2][0, 3, 1, 2], slope, atol=1e-5, rtol=1e-5)


def test_what_stands_in_the_padding_changes_nothing():
    q, k, v = inputs()
    y = block_sparse_attention(q, k, v, LENGTHS, layout=random_layout(False), block=BLOCK)
    hidden = torch.arange(22) >= LENGTHS[:, None]
    k[hidden], v[hidden] = 1e4, -1e4
    torch.testing.assert_close(
        block_sparse_attention(q, k, v, LENGTHS, layout=random_layout(False), block=BLOCK), y
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precision(dtype, tolerance):
    q, k, v = inputs(dtype=dtype)
    y = block_sparse_attention(q, k, v, LENGTHS, layout=random_layout(False), block=BLOCK)
    wide = (x.double() for x in (q, k, v))
    expected = block_sparse_attention(*wide, LENGTHS, layout=random_layout(False), block=BLOCK)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)


def test_a_layout_of_other_blocks_is_refused():
    with pytest.raises(ValueError, match="layout has to be"):
        block_sparse_attention(
            *inputs(), LENGTHS, layout=random_layout(False)[:, :, 1:], block=BLOCK
        )


def test_no_more_is_made_than_named_blocks_want():
    """2,000 frames of which each block sees two others: no tensor near 2,000 x 2,000."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    x = torch.randn(1, 2000, 1, 8, requires_grad=True)
    layout = near_blocks(125, 1)
    with Watch():
        block_sparse_attention(
            x, x, x, torch.tensor([2000]), layout=layout, block=16
        ).sum().backward()
    assert largest < 2000 * 2000 / 10


def test_layouts():
    near = near_blocks(4, 1)[0].int().tolist()
    assert near == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    found = shards(3, 5, 2)
    assert found[0, 4].int().tolist() == [1, 0, 1, 0, 1]
    assert found[1, 0].int().tolist() == [0, 1, 0, 1, 0]
    assert (found[2] == found[0]).all()


def test_the_best_blocks():
    q, k, _ = inputs()
    layout = top_blocks(q, k, LENGTHS, BLOCK, 2)
    counts = layout.sum(-1)
    for b, blocks in enumerate((6, 3, 0, 4)):
        assert (counts[b] == min(2, blocks)).all()
        assert not layout[b, :, :, blocks:].any()
    score = torch.einsum("hd,jhd->hj", q[0, 4:8].mean(0), torch.stack(
        [k[0, s : min(s + 4, 22)].mean(0) for s in range(0, 22, 4)]))  # fmt: skip
    wanted = torch.zeros(HEADS, 6, dtype=torch.bool).scatter(1, score.topk(2, 1).indices, True)
    assert (layout[0, :, 1] == wanted).all()
    causal = top_blocks(q, k, LENGTHS, BLOCK, 3, causal=True)
    assert not causal[0].triu(1).any() and (causal[0].sum(-1)[:, :3] == torch.arange(1, 4)).all()
