"""Exact softmax attention over lengths, with fewer heads of keys than of queries if need be.

    score[i, j] = q_i . k_j / sqrt(Dh)

over torch's `scaled_dot_product_attention`, whose fused kernels store no scores. Masks are built
only where something is hidden, a tile at a time.
"""

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from speechattn.kernels.attention.tiles import Group, groups, tiles
from speechattn.kernels.backend import choose
from speechattn.kernels.precision import operands
from speechattn.masks import Chunks, chunk_mask, padding_mask


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    *,
    chunks: Chunks | None = None,
    dropout: float = 0.0,
    query_lengths: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """Attend in a ragged batch.

    Args:
        q: (B, Tq, H, Dh) queries.
        k, v: (B, Tk, Hkv, Dh); Hkv divides H, and neighbouring heads of queries share keys.
        lengths: (B,) int64, real keys.
        chunks: what a query sees, for Tq = Tk; None for all keys of its item.
        dropout: of the attention weights, in [0, 1]; 0 outside of training.
        query_lengths: (B,) int64, real queries; all Tq where left out.
        slopes: (H,); a score falls by so much for each frame between query and key (ALiBi,
            2108.12409, here to both sides). The last query is at the last of the Tk keys.

    Returns:
        (B, Tq, H, Dh), zero for queries that are not real and for items without keys; in
        autocast's dtype where it is on.

    Raises:
        ValueError: Hkv does not divide H, or chunks are given for Tq unlike Tk.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {k.shape[2]} heads of keys do not divide {q.shape[2]} heads")
    if chunks is not None and q.shape[1] != k.shape[1]:
        raise ValueError(f"attention: chunks want as many queries as keys, not {q.shape[1]} "
                         f"and {k.shape[1]}")  # fmt: skip
    q, k, v = operands(q, k, v)
    backend = choose(q.device, "attention", q)
    if backend == "triton":
        from speechattn.kernels.attention.triton.exact import attention as kernel

        compute = partial(kernel, query_lengths=query_lengths)
    else:
        compute = {"reference": reference, "torch": tiled}[backend]
    with torch.autocast(q.device.type, enabled=False):
        y = compute(q, k, v, lengths, chunks=chunks, dropout=dropout, slopes=slopes)
    real = (lengths > 0)[:, None]  # (B, 1)
    if query_lengths is not None:
        real = real & padding_mask(query_lengths, q.shape[1])
    return y.masked_fill(~real[..., None, None], 0.0)


def reference(
    *tensors: Tensor,
    chunks: Chunks | None = None,
    dropout: float = 0.0,
    slopes: Tensor | None = None,
) -> Tensor:
    """Compute the definition; see `attention`. Makes (B, H, Tq, Tk) tensors."""
    q, k, v, lengths = tensors
    shared = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(shared, dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[3])
    if slopes is not None:
        ahead = k.shape[1] - q.shape[1]
        scores = scores + _bias(slopes, ahead, k.shape[1], 0, k.shape[1], scores)
    seen = padding_mask(lengths, k.shape[1])[:, None, None]  # (B, 1, 1, Tk)
    if chunks is not None:
        seen = seen & chunk_mask(k.shape[1], chunks, q.device)
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
    weights = torch.nn.functional.dropout(weights, dropout, training=dropout > 0)
    return torch.einsum("bhij,bjhd->bihd", weights, v)


def tiled(
    *tensors: Tensor,
    chunks: Chunks | None = None,
    dropout: float = 0.0,
    slopes: Tensor | None = None,
) -> Tensor:
    """Compute by group, and by tile for chunks, dropout or slopes; see `attention`."""
    q, k, v, lengths = tensors
    heads, frames = q.shape[2], k.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, Dh)
    if heads != k.shape[1]:
        # Copies: torch has fused kernels for shared heads on some devices only.
        k, v = (x.repeat_interleave(heads // k.shape[1], dim=1) for x in (k, v))
    run = partial(_group, q, k, v, chunks=chunks, dropout=dropout, slopes=slopes)
    parts, done = [], 0
    for group in groups(lengths, frames, heads):
        parts.append(_nothing(q[done : group.start]))  # items of no keys
        parts.append(run(group=group))
        done = group.stop
    parts.append(_nothing(q[done:]))
    return torch.cat(parts).transpose(1, 2)


def _group(
    *heads: Tensor, group: Group, chunks: Chunks | None, dropout: float, slopes: Tensor | None
) -> Tensor:
    """Compute the output (G, H, Tq, Dh) of a group, from the operands of the batch."""
    q, k, v = heads
    # The last query is at the last key of the batch.
    ahead = k.shape[2] - q.shape[2]
    q = q[group.start : group.stop]
    k, v = (x[group.start : group.stop, :, : group.frames] for x in (k, v))
    seen = None if group.padding is None else ~group.padding  # (G, 1, 1, frames)
    if chunks is None and dropout == 0 and slopes is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=seen)
    items, heads, queries, _ = q.shape
    # Many small outputs among large masks would fragment the memory.
    outputs, result = [], None if torch.is_grad_enabled() else torch.zeros_like(q)
    # With chunks, queries beyond the group's longest item see nothing and are filled with zeros.
    stop = queries if chunks is None else group.frames
    for tile in tiles(stop, items * heads, chunks, q.device, keys=group.frames):
        mask = None if seen is None else seen[..., tile.first : tile.last]
        if tile.hidden is not None:
            mask = ~tile.hidden if mask is None else mask & ~tile.hidden
        rows = q[:, :, tile.start : tile.stop]
        reverse = slopes is not None and mask is None
        if slopes is not None:
            place = (tile.start + ahead, tile.stop + ahead, tile.first, tile.last)
            if reverse:
                rows, mask = rows.flip(2), _reversed_bias(slopes, *place, q)
            else:
                bias = _bias(slopes, *place, q)
                if mask is not None:
                    bias = torch.where(mask, bias, torch.finfo(bias.dtype).min)
                mask = bias
        part = (rows, k[:, :, tile.first : tile.last], v[:, :, tile.first : tile.last], mask,
                dropout)  # fmt: skip
        if dropout > 0 and torch.is_grad_enabled():
            # On a CPU torch keeps the weights of attention with dropout: recompute them instead.
            y = checkpoint(scaled_dot_product_attention, *part, use_reentrant=False)
        else:
            y = scaled_dot_product_attention(*part)
        y = y.flip(2) if reverse else y
        if result is None:
            outputs.append(y)
        else:
            result[:, :, tile.start : tile.stop] = y
    if result is not None:
        return result
    outputs.append(_nothing(q[:, :, stop:]))
    return torch.cat(outputs, dim=2)


def _bias(slopes: Tensor, start: int, stop: int, first: int, last: int, like: Tensor) -> Tensor:
    """Return -slope * distance (H, c, m) of queries `start` to `stop`, keys `first` to `last`."""
    i = torch.arange(start, stop, device=like.device)[:, None]
    distance = (i - torch.arange(first, last, device=like.device)).abs()  # (c, m)
    return -slopes.to(like)[:, None, None] * distance.to(like)


def _reversed_bias(
    slopes: Tensor, start: int, stop: int, first: int, last: int, like: Tensor
) -> Tensor:
    """Return `_bias` with queries from the last to the first, a view of H (c + m - 1) numbers."""
    # An entry depends only on the sum of row and column, so that rows overlap. To build the full
    # tile took as long as the attention itself.
    queries, keys = stop - start, last - first
    distance = torch.arange(first - stop + 1, last - start, device=like.device).abs()  # (c+m-1,)
    fall = -slopes.to(like)[:, None] * distance.to(like)
    return fall.as_strided((len(slopes), queries, keys), (fall.shape[1], 1, 1))


def _nothing(q: Tensor) -> Tensor:
    """Return zeros that depend on the queries, for the backward pass."""
    return q.masked_fill(torch.ones((), dtype=torch.bool, device=q.device), 0.0)
