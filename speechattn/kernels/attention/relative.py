"""Attention over content and relative position (Transformer-XL, 1901.02860, section 3.3).

    score[i, j] = ((q_i + u) . k_j + (q_i + w) . p_(i-j)) / sqrt(Dh)

with a content bias u and a position bias w per head. A frame sees the real frames of its item and,
with chunks, those that its chunk lets it see. What comes out beyond an item's length is zero.
"""

import math

import torch
from torch import Tensor

from speechattn.kernels.attention.dropout import draw_seed
from speechattn.kernels.attention.relative_tiles import RelativeAttention, forward, tile_weights
from speechattn.kernels.backend import choose
from speechattn.kernels.precision import HALF, operands
from speechattn.masks import Chunks, chunk_mask, padding_mask


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    *,
    lengths: Tensor,
    chunks: Chunks | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend within the items of a ragged batch.

    Args:
        q, k, v: (B, T, H, Dh) queries, keys and values.
        p: (2T-1, H, Dh), row r is the projected sinusoid of the distance i - j = T-1-r.
        content_bias, position_bias: (H, Dh).
        lengths: (B,) int64.
        chunks: what a frame sees; None for the whole item.
        dropout: of the attention weights, in [0, 1]; 0 outside of training.

    Returns:
        (B, T, H, Dh), zero beyond an item's length; in autocast's dtype where it is on.

    Raises:
        ValueError: p has not 2T-1 rows.
    """
    if p.shape[0] != 2 * q.shape[1] - 1:
        raise ValueError(f"relative_attention: {q.shape[1]} frames want p of 2T-1 rows, got "
                         f"{p.shape[0]}")  # fmt: skip
    tensors = operands(q, k, v, p, content_bias, position_bias)
    backend = choose(q.device, "relative_attention", tensors[0])
    if backend == "triton":
        from speechattn.kernels.attention.triton.relative import relative_attention as compute
    else:
        compute = {"reference": reference, "torch": tiled}[backend]
    with torch.autocast(q.device.type, enabled=False):
        return compute(*tensors, lengths=lengths, chunks=chunks, dropout=dropout)


def reference(
    *tensors: Tensor, lengths: Tensor, chunks: Chunks | None = None, dropout: float = 0.0
) -> Tensor:
    """Compute the definition; see `relative_attention`. Makes (B, H, T, 2T-1) tensors."""
    q, k, v, p, content_bias, position_bias = tensors
    frames, depth = q.shape[1], q.shape[3]
    content = torch.einsum("bihd,bjhd->bhij", q + content_bias, k)  # (B, H, T, T)
    by_distance = torch.einsum("bihd,rhd->bhir", q + position_bias, p)  # (B, H, T, 2T-1)
    i = torch.arange(frames, device=q.device)[:, None]
    row = frames - 1 - i + i.T  # (T, T)
    place = by_distance.gather(3, row.expand(*content.shape))
    scores = (content + place) / math.sqrt(depth)
    if scores.dtype in HALF:
        scores = scores.float()
    real = padding_mask(lengths, frames)  # (B, T)
    seen = real[:, None, None]
    if chunks is not None:
        seen = seen & chunk_mask(frames, chunks, q.device)
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1).to(v.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, training=dropout > 0)
    y = torch.einsum("bhij,bjhd->bihd", weights, v)
    return y.masked_fill(~real[..., None, None], 0.0)


def tiled(
    *tensors: Tensor, lengths: Tensor, chunks: Chunks | None = None, dropout: float = 0.0
) -> Tensor:
    """Compute tile by tile, forwards and backwards; see `relative_attention`."""
    q, k, v, p, content_bias, position_bias = tensors
    scale = 1 / math.sqrt(q.shape[3])
    # Scaling the queries is Dh/T of the work of scaling the scores.
    content = (q + content_bias).mul_(scale)  # (B, T, H, Dh)
    place = (q + position_bias).mul_(scale)
    seed = draw_seed() if dropout > 0 else 0
    inputs = (content, place, k, v, p, lengths)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return RelativeAttention.apply(*inputs, chunks, dropout, seed)
    return forward(*inputs, chunks=chunks, dropout=dropout, seed=seed)[0]


def relative_attention_step(
    q: Tensor, k: Tensor, v: Tensor, p: Tensor, content_bias: Tensor, position_bias: Tensor
) -> Tensor:
    """Attend from the last frames to all, in streams of equal length with nothing masked.

    Args:
        q: (B, c, H, Dh) queries of the last c of L frames.
        k, v: (B, L, H, Dh).
        p: (c+L-1, H, Dh), row r is the distance i - j = L-1-r: from L-1 down to 1-c.
        content_bias, position_bias: (H, Dh).

    Returns:
        (B, c, H, Dh).
    """
    q, k, v, p, content_bias, position_bias = operands(q, k, v, p, content_bias, position_bias)
    scale = 1 / math.sqrt(q.shape[3])

    def heads_first(x: Tensor) -> Tensor:
        return x.permute(2, 0, 1, 3).flatten(0, 1)  # (H B, frames, Dh)

    with torch.autocast(q.device.type, enabled=False):
        content = heads_first((q + content_bias) * scale)
        place = heads_first((q + position_bias) * scale).unflatten(0, (q.shape[2], -1))
        weights = tile_weights(content, place, heads_first(k), p.transpose(0, 1), ())
        y = torch.bmm(weights, heads_first(v))  # (H B, c, Dh)
    return y.unflatten(0, (q.shape[2], -1)).permute(1, 2, 0, 3)
