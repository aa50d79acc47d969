"""Relative attention of every s-th frame (Efficient Conformer, 2109.01163, section 3.3).

Legend: see `speechattn.kernels`. Query i is at frame s i.
"""

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from speechattn.kernels.attention.tiles import tiles
from speechattn.kernels.backend import choose
from speechattn.kernels.precision import HALF, operands
from speechattn.masks import padding_mask


def strided_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    *,
    lengths: Tensor,
    stride: int,
    dropout: float = 0.0,
) -> Tensor:
    """Attend from frames 0, s, 2s, ... of a ragged batch to all of its frames.

    Args:
        q: (B, Tq, H, Dh) queries of these frames.
        k, v: (B, T, H, Dh) keys and values.
        p: (2T-1, H, Dh), row r is the projected sinusoid of the distance s i - j = T-1-r.
        content_bias, position_bias: (H, Dh).
        lengths: (B,) int64, of the keys.
        stride: s.
        dropout: of the attention weights, in [0, 1]; 0 outside of training.

    Returns:
        (B, Tq, H, Dh), finite beyond an item's queries; in autocast's dtype where it is on.

    Raises:
        ValueError: q or p has not as many rows as the keys require.
    """
    frames = k.shape[1]
    if (q.shape[1], p.shape[0]) != (-(-frames // stride), 2 * frames - 1):
        raise ValueError(
            f"strided_attention: {frames} frames and a stride of {stride} want "
            f"{-(-frames // stride)} queries and p of 2T-1 rows, got {q.shape[1]} and {p.shape[0]}"
        )
    tensors = operands(q, k, v, p, content_bias, position_bias)
    compute = reference if choose(q.device) == "reference" else tiled
    with torch.autocast(q.device.type, enabled=False):
        return compute(*tensors, lengths=lengths, stride=stride, dropout=dropout)


def reference(*tensors: Tensor, lengths: Tensor, stride: int, dropout: float = 0.0) -> Tensor:
    """Compute the definition; see `strided_attention`. Makes (B, H, Tq, 2T-1) tensors."""
    q, k, v, p, content_bias, position_bias = tensors
    frames, depth = k.shape[1], k.shape[3]
    content = torch.einsum("bihd,bjhd->bhij", q + content_bias, k)  # (B, H, Tq, T)
    by_distance = torch.einsum("bihd,rhd->bhir", q + position_bias, p)  # (B, H, Tq, 2T-1)
    i = torch.arange(q.shape[1], device=q.device)[:, None]
    row = frames - 1 - stride * i + torch.arange(frames, device=q.device)  # (Tq, T)
    place = by_distance.gather(3, row.expand(*content.shape))
    scores = (content + place) / math.sqrt(depth)
    hidden = ~padding_mask(lengths, frames)[:, None, None]
    weights = _softmax(scores, hidden, v.dtype, dropout)
    return torch.einsum("bhij,bjhd->bihd", weights, v)


def tiled(*tensors: Tensor, lengths: Tensor, stride: int, dropout: float = 0.0) -> Tensor:
    """Compute tile by tile, backwards again from the inputs; see `strided_attention`."""
    q, k, v, p, content_bias, position_bias = tensors
    batch, frames, heads, depth = k.shape
    scale = 1 / math.sqrt(depth)
    content = ((q + content_bias) * scale).transpose(1, 2)  # (B, H, Tq, Dh)
    place = ((q + position_bias) * scale).permute(2, 0, 1, 3)  # (H, B, Tq, Dh)
    k, v = k.permute(0, 2, 3, 1), v.transpose(1, 2)  # (B, H, Dh, T), (B, H, T, Dh)
    p = p.permute(1, 2, 0)  # (H, Dh, 2T-1)
    hidden = ~padding_mask(lengths, frames)[:, None, None]
    run = partial(_tile, k, v, hidden, stride, dropout)
    if torch.is_grad_enabled():
        run = partial(checkpoint, run, use_reentrant=False)
    parts = []
    for tile in tiles(q.shape[1], batch * heads, None, q.device, frames):
        rows = slice(tile.start, tile.stop)
        band = slice(frames - 1 - stride * (tile.stop - 1), 2 * frames - 1 - stride * tile.start)
        parts.append(run(content[:, :, rows], place[:, :, rows], p[..., band]))
    return torch.cat(parts, dim=2).transpose(1, 2)


def _tile(
    k: Tensor, v: Tensor, hidden: Tensor, stride: int, dropout: float, *own: Tensor
) -> Tensor:
    """Attend from c queries (B, H, c, Dh), (H, B, c, Dh), with their W = T + s (c-1) distances."""
    content, place, p = own
    heads, batch, queries, _ = place.shape
    # All items share p: their queries go through one product a head.
    by_distance = torch.bmm(place.flatten(1, 2), p)  # (H, B c, W)
    width, frames = p.shape[2], k.shape[3]
    # One row down moves the keys s columns left; with a single row its stride means nothing.
    shifted = by_distance.as_strided(
        (heads, batch, queries, frames),
        (batch * queries * width, queries * width, max(width - stride, 0), 1),
        by_distance.storage_offset() + stride * (queries - 1),
    )
    scores = torch.matmul(content, k)  # (B, H, c, T)
    if scores.dtype in HALF:
        scores = scores.float()
    scores = scores + shifted.transpose(0, 1)
    return torch.matmul(_softmax(scores, hidden, v.dtype, dropout), v)


def _softmax(scores: Tensor, hidden: Tensor, dtype: torch.dtype, dropout: float) -> Tensor:
    """Return attention weights in `dtype`, zero where hidden."""
    if scores.dtype in HALF:
        scores = scores.float()
    # The lowest finite number and not -inf: an item without frames gives no NaN.
    weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1).to(dtype)
    return functional.dropout(weights, dropout, training=dropout > 0)
