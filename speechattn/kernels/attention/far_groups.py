"""A softmax over near frames and one token for each far group of frames.

Attention to the near frames is given; it takes part as one more key, whose score is the logarithm
of its denominator. Legend: see `speechattn.kernels`; g frames of a group, E groups.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from speechattn.kernels.attention.local_blocks import lowest
from speechattn.kernels.attention.tiles import tiles
from speechattn.kernels.attention.time_blocks import wide
from speechattn.kernels.backend import choose


@dataclass(frozen=True)
class FarGroups:
    """The groups that are far from a frame.

    Attributes:
        group: g.
        near: groups before a frame's own that are near, and after it unless `causal`.
        causal: groups after a frame's own are masked.
    """

    group: int
    near: int
    causal: bool


def add_far_groups(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    near: tuple[Tensor, Tensor],
    *,
    count: Tensor,
    far: FarGroups,
    first: int = 0,
    dropout: float = 0.0,
) -> Tensor:
    """Merge attention to near frames with the far groups, a tile at a time; at once as reference.

    Args:
        q: (B, T, H, Dh), of frames from `first` on.
        key, value: (B, E, H, Dh) of the groups.
        near: (B, T, H, Dh), and the logarithm of its denominator (B, T, H), of near frames.
        count: (B,) real groups.
        far: those that a frame sees.
        first: index of the first query.
        dropout: of the weights of groups.

    Returns:
        (B, T, H, Dh).
    """
    y, total = near
    batch, frames, heads = q.shape[:3]
    groups = key.shape[1]
    run = partial(_tile, dropout=dropout)
    if choose(q.device) == "reference":
        cut = [slice(0, frames)]
    else:
        cut = [
            slice(tile.start, tile.stop)
            for tile in tiles(frames, batch * heads, None, q.device, max(groups, 1))
        ]
        if torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False)
    parts = []
    for rows in cut:
        own = torch.arange(first + rows.start, first + rows.stop, device=q.device)
        own = own.div(far.group, rounding_mode="floor")[:, None]  # group of each query
        keys = groups
        if far.causal and len(cut) > 1:
            keys = min(max((first + rows.stop - 1) // far.group - far.near, 0), groups)
        group = torch.arange(keys, device=q.device)
        hidden = group >= own - far.near  # (c, E)
        if not far.causal:
            hidden = hidden & (group <= own + far.near)
        hidden = hidden | (group >= count[:, None, None])  # (B, c, E)
        part = q[:, rows], y[:, rows], total[:, rows], key[:, :keys], value[:, :keys]
        parts.append(run(*part, hidden[:, None]) if keys else y[:, rows])
    return torch.cat(parts, dim=1)


def _tile(
    q: Tensor, y: Tensor, total: Tensor, key: Tensor, value: Tensor, hidden: Tensor, dropout: float
) -> Tensor:
    """Compute (B, c, H, Dh) of a tile; see `add_far_groups`."""
    dtype = wide(q.dtype)
    scores = torch.einsum("bchd,behd->bhce", q.to(dtype), key.to(dtype))
    scores = (scores / math.sqrt(q.shape[3])).masked_fill(hidden, lowest(dtype))
    scores = torch.cat((total.transpose(1, 2)[..., None], scores), dim=3)
    near, far = scores.softmax(-1).split((1, scores.shape[3] - 1), dim=3)
    far = functional.dropout(far, dropout, training=dropout > 0)
    found = torch.einsum("bhce,behd->bchd", far, value.to(dtype))
    return (near.transpose(1, 2) * y.to(dtype) + found).to(y.dtype)
