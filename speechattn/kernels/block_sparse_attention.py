"""Softmax attention over chosen blocks of keys, others for each head and each block of queries.

What routed, sharded and top-k mechanisms have in common: a layout says which blocks of keys a block
of queries sees; `speechattn.kernels.block_layouts` makes some. Time and memory go with the number
of blocks that are named.

Legend: B items, T queries, S keys, H heads, Hkv heads of keys and values, Dh width of a head, g
frames of a block, Tb and Sb blocks of queries and of keys, r rows of a tile (blocks of queries), n
blocks that the longest of them names.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from speechattn.kernels.backend import choose
from speechattn.kernels.local_blocks import lowest
from speechattn.kernels.precision import operands
from speechattn.kernels.time_blocks import wide
from speechattn.masks import padding_mask

# Scores of a tile: what stays in a cache, and what keeps a GPU busy.
_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    layout: Tensor,
    block: int,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Attend to the keys of the blocks that a layout names.

    Args:
        q: (B, T, H, Dh).
        k: (B, S, Hkv, Dh), Hkv divides H.
        v: (B, S, Hkv, Dh).
        lengths: (B,) int64, keys of each item.
        layout: (H, Tb, Sb) or (B, H, Tb, Sb) bool, True for blocks that are seen, with Tb = ceil(T
            / g) and Sb = ceil(S / g).
        block: g.
        causal: a query sees no key after its own, T and S being the same frames.
        dropout: of the weights.

    Returns:
        (B, T, H, Dh); 0 for a query that sees no key.

    Raises:
        ValueError: the layout does not go with the others.
    """
    batch, frames, heads, _ = q.shape
    wanted = (heads, -(-frames // block), -(-k.shape[1] // block))
    if layout.shape not in (wanted, (batch, *wanted)):
        raise ValueError(
            f"block_sparse_attention: layout has to be of {wanted} or {(batch, *wanted)} for "
            f"blocks of {block} frames, not {tuple(layout.shape)}"
        )
    q, k, v = operands(q, k, v)
    if heads != k.shape[2]:
        k, v = (x.repeat_interleave(heads // x.shape[2], 2) for x in (k, v))
    compute = {"reference": reference, "torch": gathered}[choose(q.device)]
    with torch.autocast(q.device.type, enabled=False):
        return compute(q, k, v, lengths, layout, block, causal, dropout)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    layout: Tensor,
    block: int,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """The definition; see `block_sparse_attention`. Makes (B, H, T, S) tensors."""
    frames, keys, dtype = q.shape[1], k.shape[1], wide(q.dtype)
    seen = layout.repeat_interleave(block, -2)[..., :frames, :]
    seen = seen.repeat_interleave(block, -1)[..., :keys]
    seen = seen & padding_mask(lengths, keys)[:, None, None]  # (B, H, T, S)
    if causal:
        seen = seen & torch.ones(frames, keys, dtype=torch.bool, device=q.device).tril()
    scores = torch.einsum("bihd,bjhd->bhij", q.to(dtype), k.to(dtype)) / math.sqrt(q.shape[3])
    weights = drop(scores.masked_fill(~seen, lowest(dtype)).softmax(-1), dropout, dropout > 0)
    weights = weights * seen.any(-1, keepdim=True)
    return torch.einsum("bhij,bjhd->bihd", weights, v.to(dtype)).to(v.dtype)


def gathered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    layout: Tensor,
    block: int,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Some blocks of queries at a time, with copies of the blocks they see.

    See `block_sparse_attention`. A tile costs as much as its row that sees the most.
    """
    batch, frames, heads, width = q.shape
    q, k, v = (_blocks(x, block) for x in (q, k, v))  # (B, H, blocks, g, Dh)
    layout = layout.expand(batch, *layout.shape[-3:])
    # Blocks beyond an item's keys have nothing to see.
    begun = torch.arange(k.shape[2], device=k.device) * block < lengths[:, None]  # (B, Sb)
    layout = layout & begun[:, None, None]
    if causal:
        square = torch.ones(layout.shape[-2:], dtype=torch.bool, device=q.device)
        layout = layout & square.tril()
    counts = layout.sum(-1).amax((0, 1)).tolist()  # of each block of queries, the most
    # Blocks that are named first, in their order.
    order = layout.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    at_once = _AT_ONCE.get(q.device.type, _AT_ONCE["cuda"])
    parts, start = [], 0
    while start < len(counts):
        stop, most = start + 1, max(counts[start], 1)
        each = batch * heads * block * block
        while stop < len(counts):
            wider = max(most, counts[stop])
            if (stop + 1 - start) * wider * each > at_once:
                break
            stop, most = stop + 1, wider
        rows = slice(start, stop)
        part = (q[:, :, rows], k, v, lengths, order[:, :, rows, :most],
                layout[:, :, rows].gather(-1, order[:, :, rows, :most]), start, causal,
                dropout)  # fmt: skip
        if torch.is_grad_enabled():
            parts.append(checkpoint(_tile, *part, use_reentrant=False))
        else:
            parts.append(_tile(*part))
        start = stop
    y = torch.cat(parts, 2) if parts else q
    return y.flatten(2, 3)[:, :, :frames].transpose(1, 2)


def _blocks(x: Tensor, block: int) -> Tensor:
    """(B, T, H, Dh) to (B, H, blocks, g, Dh)."""
    x = pad(x, (0, 0, 0, 0, 0, -x.shape[1] % block))
    return x.unflatten(1, (-1, block)).permute(0, 3, 1, 2, 4)


def _tile(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    index: Tensor,
    named: Tensor,
    first: int,
    causal: bool,
    dropout: float,
) -> Tensor:
    """(B, H, r, g, Dh) of some blocks of queries.

    Args:
        q: (B, H, r, g, Dh), from block `first` on.
        k: (B, H, Sb, g, Dh).
        v: (B, H, Sb, g, Dh).
        lengths: (B,) keys.
        index: (B, H, r, n) which blocks they see.
        named: (B, H, r, n) bool, False where that is a filler.
        first: see q.
        causal: see `block_sparse_attention`.
        dropout: likewise.
    """
    block, dtype = q.shape[3], wide(q.dtype)
    item = torch.arange(len(q), device=q.device)[:, None, None, None]
    head = torch.arange(q.shape[1], device=q.device)[:, None, None]
    keys, values = (x[item, head, index].flatten(3, 4) for x in (k, v))  # (B, H, r, n * g, Dh)
    inside = torch.arange(block, device=q.device)
    place = (index[..., None] * block + inside).flatten(3)  # (B, H, r, n * g)
    seen = (place < lengths[:, None, None, None]) & named.repeat_interleave(block, -1)
    seen = seen[..., None, :]  # (B, H, r, 1, n * g)
    if causal:
        row = torch.arange(first, first + q.shape[2], device=q.device)[:, None] * block + inside
        seen = seen & (place[..., None, :] <= row[..., None])
    scores = q.to(dtype) @ keys.to(dtype).transpose(-1, -2) / math.sqrt(q.shape[4])
    weights = drop(scores.masked_fill(~seen, lowest(dtype)).softmax(-1), dropout, dropout > 0)
    weights = weights * seen.any(-1, keepdim=True)
    return (weights @ values.to(dtype)).to(v.dtype)
