"""Softmax attention over blocks of keys chosen by a layout, per head and block of queries.

The common part of routed, sharded and top-k mechanisms; `block_layouts` makes layouts. Time and
memory are proportional to the number of blocks in the layout.

Legend: see `speechattn.kernels`; g frames of a block, Eq and Ek blocks of queries and of keys,
R = B H Eq rows (blocks of queries), r rows of a tile, n blocks of the longest of them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import pad, scaled_dot_product_attention

from speechattn.kernels.attention.dropout import WeightDropout, draw_seed
from speechattn.kernels.attention.local_blocks import lowest
from speechattn.kernels.attention.time_blocks import wide
from speechattn.kernels.backend import choose
from speechattn.kernels.precision import operands
from speechattn.masks import padding_mask

# Numbers of a tile, in its copies of keys and values and in its scores: few enough for a cache,
# enough to keep a GPU busy.
_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 26}
# A tile ends before a row with less than this share of its first row's blocks: shorter rows are
# padded to the longest.
_ALIKE = 0.75


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    *,
    layout: Tensor,
    block: int,
    causal: bool = False,
    dropout: float = 0.0,
    query_lengths: Tensor | None = None,
) -> Tensor:
    """Attend to the keys of the blocks in a layout.

    Args:
        q: (B, Tq, H, Dh).
        k, v: (B, Tk, Hkv, Dh); Hkv divides H, and neighbouring heads of queries share keys.
        lengths: (B,) int64, real keys of each item.
        layout: (H, Eq, Ek) or (B, H, Eq, Ek) bool, True for blocks that are seen, with
            Eq = ceil(Tq / g) and Ek = ceil(Tk / g).
        block: g.
        causal: a query sees no key after its own, queries and keys being the same frames.
        dropout: of the weights, in [0, 1]; 0 outside of training.
        query_lengths: (B,) int64, real queries; all Tq where left out.

    Returns:
        (B, Tq, H, Dh); 0 for a query that sees no key or is not real; in autocast's dtype where it
        is on.

    Raises:
        ValueError: Hkv does not divide H, or the layout has another shape or dtype.
    """
    batch, frames, heads, _ = q.shape
    if heads % k.shape[2]:
        raise ValueError(f"block_sparse_attention: {k.shape[2]} heads of keys do not divide "
                         f"{heads} heads")  # fmt: skip
    if block < 1:
        raise ValueError(f"block_sparse_attention: a block has 1 frame or more, not {block}")
    wanted = (heads, -(-frames // block), -(-k.shape[1] // block))
    if layout.dtype != torch.bool or layout.shape not in (wanted, (batch, *wanted)):
        raise ValueError(
            f"block_sparse_attention: layout has to be bool of {wanted} or {(batch, *wanted)} for "
            f"blocks of {block} frames, not {layout.dtype} of {tuple(layout.shape)}"
        )
    q, k, v = operands(q, k, v)
    backend = choose(q.device, "block_sparse_attention", q)
    if backend == "triton":
        from speechattn.kernels.attention.triton.block_sparse import (
            block_sparse_attention as compute,
        )
    else:
        compute = {"reference": reference, "torch": gathered}[backend]
    with torch.autocast(q.device.type, enabled=False):
        y = compute(
            q,
            k,
            v,
            lengths,
            layout,
            block=block,
            causal=causal,
            dropout=dropout,
            query_lengths=query_lengths,
        )
    if query_lengths is None:
        return y
    return y.masked_fill(~padding_mask(query_lengths, frames)[..., None, None], 0.0)


def reference(
    *tensors: Tensor,
    block: int,
    causal: bool = False,
    dropout: float = 0.0,
    query_lengths: Tensor | None = None,
) -> Tensor:
    """Compute the definition; see `block_sparse_attention`. Makes (B, H, Tq, Tk) tensors.

    Queries that are not real are computed like others.
    """
    q, k, v, lengths, layout = tensors
    frames, keys, dtype = q.shape[1], k.shape[1], wide(q.dtype)
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    seen = layout.repeat_interleave(block, -2)[..., :frames, :]
    seen = seen.repeat_interleave(block, -1)[..., :keys]
    seen = seen & padding_mask(lengths, keys)[:, None, None]  # (B, H, Tq, Tk)
    if causal:
        seen = seen & torch.ones(frames, keys, dtype=torch.bool, device=q.device).tril()
    scores = torch.einsum("bihd,bjhd->bhij", q.to(dtype), k.to(dtype)) / math.sqrt(q.shape[3])
    weights = drop(scores.masked_fill(~seen, lowest(dtype)).softmax(-1), dropout, dropout > 0)
    weights = weights * seen.any(-1, keepdim=True)
    return torch.einsum("bhij,bjhd->bihd", weights, v.to(dtype)).to(v.dtype)


def gathered(
    *tensors: Tensor,
    block: int,
    causal: bool = False,
    dropout: float = 0.0,
    query_lengths: Tensor | None = None,
) -> Tensor:
    """Compute blocks of queries with similar numbers of keys together, from copies of their keys.

    See `block_sparse_attention`. Blocks without a real query are left out.
    """
    q, k, v, lengths, layout = tensors
    batch, frames, heads, width = q.shape
    layout = layout & _begun(lengths, layout.shape[-1], block)[:, None, None]  # (B, H, Eq, Ek)
    if query_lengths is not None:
        layout = layout & _begun(query_lengths, layout.shape[-2], block)[:, None, :, None]
    if causal:
        square = torch.ones(layout.shape[-2:], dtype=torch.bool, device=q.device)
        layout = layout & square.tril()
    shared = heads // k.shape[2]
    settings = _Settings(shared, block, causal, dropout, draw_seed() if dropout > 0 else 0)
    q, k, v = (_blocks(x, block) for x in (q, k, v))  # (R, g, Dh)
    y = _Gathered.apply(q, k, v, lengths, layout, settings)
    y = y.view(batch, heads, layout.shape[2] * block, width)
    return y[:, :, :frames].transpose(1, 2)


def _begun(lengths: Tensor, blocks: int, block: int) -> Tensor:
    """Return which blocks have a real frame, (B, blocks) bool."""
    return torch.arange(blocks, device=lengths.device) * block < lengths[:, None]


def _blocks(x: Tensor, block: int) -> Tensor:
    """Reshape (B, T, H, Dh) to (B * H * blocks, g, Dh)."""
    x = pad(x, (0, 0, 0, 0, 0, -x.shape[1] % block)).transpose(1, 2)
    return x.reshape(-1, block, x.shape[3])


@dataclass(frozen=True)
class _Settings:
    """Options of `block_sparse_attention`."""

    shared: int  # heads of queries to a head of keys
    block: int
    causal: bool
    dropout: float
    seed: int


@dataclass(frozen=True)
class _Tile:
    """Rows that are computed together."""

    rows: Tensor  # (r,), which of the R
    source: Tensor  # (r * n,), rows of the blocks of keys that they see
    seen: Tensor | None  # (r, 1, g or 1, n * g) bool, visible keys; None where all are


def _tiles(layout: Tensor, lengths: Tensor, width: int, settings: _Settings) -> Iterator[_Tile]:
    """Yield all rows that see a block, the longest first; the layout is without padding."""
    _, heads, above, across = layout.shape
    block, shared, device = settings.block, settings.shared, layout.device
    counts = layout.sum(-1).flatten()  # (R,)
    columns = layout.flatten(0, 2).nonzero()[:, 1]  # of all rows, one after the other
    begins = counts.cumsum(0) - counts
    # Equal lengths stay in their order, that of the memory.
    counts, order = counts.sort(descending=True, stable=True)
    named = counts.tolist()
    at_once = _AT_ONCE.get(device.type, _AT_ONCE["cuda"])
    inside = torch.arange(block, device=device)
    start = 0
    while start < len(named) and named[start] > 0:
        most = named[start]
        room = max(at_once // (most * block * (block + 2 * width)), 1)
        stop = start + 1
        while stop < min(start + room, len(named)) and named[stop] >= max(_ALIKE * most, 1):
            stop += 1
        rows, place = order[start:stop], torch.arange(most, device=device)
        item, head, row = rows // (heads * above), rows // above % heads, rows % above  # (r,)
        filler = place >= counts[start:stop, None]  # (r, n)
        column = columns[(begins[rows, None] + place).clamp(max=len(columns) - 1)]
        source = (item * (heads // shared) + head // shared)[:, None] * across + column
        last = lengths[item, None]  # (r, 1)
        partly = filler | ((column + 1) * block > last)
        if settings.causal:
            partly = partly | (column >= row[:, None])
        seen = None
        if device.type != "cpu" or bool(partly.any()):  # reading it would wait for the device
            key = (column[..., None] * block + inside).flatten(1)  # (r, n * g)
            seen = (key < last) & ~filler.repeat_interleave(block, 1)
            seen = seen[:, None, None]  # (r, 1, 1, n * g)
            if settings.causal:
                query = row[:, None] * block + inside
                seen = seen & (key[:, None] <= query[..., None])[:, None]  # (r, 1, g, n * g)
        yield _Tile(rows, source.flatten(), seen)
        start = stop


class _Gathered(torch.autograd.Function):
    """`gathered`; tiles are computed again in the backward pass."""

    @staticmethod
    def forward(ctx, q, k, v, lengths, layout, settings):
        y, masks = torch.zeros_like(q), _masks(settings, q.device)
        for tile in _tiles(layout, lengths, q.shape[2], settings):
            y.index_copy_(0, tile.rows, _attend(*_copies(q, k, v, tile), tile.seen, masks))
        ctx.save_for_backward(q, k, v, lengths, layout)
        ctx.settings = settings
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, k, v, lengths, layout = ctx.saved_tensors
        settings, dtype = ctx.settings, wide(k.dtype)
        masks = _masks(settings, q.device)
        dq = torch.zeros_like(q)
        # Sums over all tiles, for which half precision is too coarse.
        dk, dv = (torch.zeros_like(x, dtype=dtype) for x in (k, v))
        for tile in _tiles(layout, lengths, q.shape[2], settings):
            copies = [x.requires_grad_() for x in _copies(q, k, v, tile)]
            with torch.enable_grad(), torch.autocast(q.device.type, enabled=False):
                y = _attend(*copies, tile.seen, masks)
            found = torch.autograd.grad(y, copies, grad.index_select(0, tile.rows))
            dq.index_copy_(0, tile.rows, found[0])
            for total, part in zip((dk, dv), found[1:], strict=True):
                total.index_add_(0, tile.source, part.to(dtype).reshape(-1, *total.shape[1:]))
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _masks(settings: _Settings, device: torch.device) -> WeightDropout | None:
    """Return the dropout masks, which begin anew each time, so that tiles get the same draws."""
    return WeightDropout(settings.dropout, settings.seed, device) if settings.dropout > 0 else None


def _copies(q: Tensor, k: Tensor, v: Tensor, tile: _Tile) -> tuple[Tensor, Tensor, Tensor]:
    """Copy the queries (r, g, Dh), and keys and values (r, n * g, Dh), of a tile."""
    keys, values = (
        x.index_select(0, tile.source).view(len(tile.rows), -1, x.shape[2]) for x in (k, v)
    )
    return q.index_select(0, tile.rows), keys, values


def _attend(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, masks: WeightDropout | None
) -> Tensor:
    """Compute the output (r, g, Dh) of a tile; see `_copies` and `_Tile`."""
    if masks is None:
        q, k, v = (x[:, None] for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=seen)[:, 0]
    dtype = wide(q.dtype)
    scores = q.to(dtype) @ k.to(dtype).transpose(1, 2) / math.sqrt(q.shape[2])  # (r, g, n * g)
    if seen is not None:
        scores = scores.masked_fill(~seen[:, 0], lowest(dtype))
    weights = scores.softmax(-1)
    return (weights * masks.mask(weights) @ v.to(dtype)).to(v.dtype)
