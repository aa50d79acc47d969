"""Layouts for `block_sparse_attention`: the blocks of keys that a block of queries sees.

Legend: see `speechattn.kernels`; g frames of a block, E blocks.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from speechattn.masks import without_padding


def near_blocks(blocks: int, near: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the blocks at most `near` away, (1, E, E) bool, the same for all heads."""
    i = torch.arange(blocks, device=device)
    return ((i[:, None] - i).abs() <= near)[None]


def shards(heads: int, blocks: int, stride: int, device: torch.device | str = "cpu") -> Tensor:
    """Return for each head every `stride`-th block, from block h on, (H, E, E) bool.

    S2-Attention (2407.17678): together the heads see everything.
    """
    i = torch.arange(blocks, device=device)
    head = torch.arange(heads, device=device)[:, None]
    return (i % stride == head % stride)[:, None].expand(-1, blocks, -1)


def top_blocks(
    q: Tensor, k: Tensor, lengths: Tensor, block: int, count: int, causal: bool = False
) -> Tensor:
    """Return the blocks whose mean keys have the highest scores with a block's mean query.

    The selection of routed mechanisms (NSA, 2502.11089), without a gradient.

    Args:
        q, k: (B, T, H, Dh).
        lengths: (B,).
        block: g.
        count: blocks of keys for each block of queries, or all.
        causal: none after its own.

    Returns:
        (B, H, E, E) bool.
    """
    with torch.no_grad():
        frames = padded_sum(lengths.new_ones(*q.shape[:2], 1, 1).to(q), lengths, block)
        q, k = (padded_sum(x, lengths, block) / frames.clamp(min=1) for x in (q, k))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[3])
        hidden = (frames[:, :, 0, 0] == 0)[:, None, None]  # (B, 1, 1, E)
        if causal:
            hidden = hidden | ~torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
        scores = scores.masked_fill(hidden, -math.inf)
        best = scores.topk(min(count, scores.shape[-1]), -1).indices
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
        return chosen & (scores > -math.inf)


def padded_sum(x: Tensor, lengths: Tensor, block: int) -> Tensor:
    """Sum (B, T, H, Dh) over the real frames of each block, to (B, E, H, Dh)."""
    x = without_padding(x.flatten(2), lengths).view_as(x)
    return pad(x, (0, 0, 0, 0, 0, -x.shape[1] % block)).unflatten(1, (-1, block)).sum(2)
