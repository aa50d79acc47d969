"""A softmax over what is near and a token for each group of frames that is far.

What is near has been summed up already; it is one more key, with the logarithm of its denominator
for a score. Legend: B utterances, T frames, H heads, Dh width of a head, g frames of a group, E
groups, c queries of a tile.
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
class Far:
    """Which groups are far from a frame.

    Attributes:
        group: g, frames of a group.
        near: groups before a frame's own that are near, and after it but where `causal`.
        causal: groups after a frame's own are not seen.
    """

    group: int
    near: int
    causal: bool


def look_far(
    q: Tensor,
    core_key: Tensor,
    core_value: Tensor,
    y: Tensor,
    total: Tensor,
    count: Tensor,
    far: Far,
    first: int = 0,
    dropout: float = 0.0,
) -> Tensor:
    """Add the far groups to what was found near, a tile at a time; at once as reference.

    Args:
        q: (B, T, H, Dh), of frames from `first` on.
        core_key: (B, E, H, Dh).
        core_value: (B, E, H, Dh).
        y: (B, T, H, Dh) found near.
        total: (B, T, H) logarithm of the denominator of its softmax.
        count: (B,) groups there are.
        far: which of them a frame sees.
        first: index of the first query.
        dropout: of the weights.

    Returns:
        (B, T, H, Dh).
    """
    batch, frames, heads = q.shape[:3]
    groups = core_key.shape[1]
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
        part = q[:, rows], y[:, rows], total[:, rows], core_key[:, :keys], core_value[:, :keys]
        parts.append(run(*part, hidden[:, None]) if keys else y[:, rows])
    return torch.cat(parts, dim=1)


def _tile(
    q: Tensor,
    y: Tensor,
    total: Tensor,
    core_key: Tensor,
    core_value: Tensor,
    hidden: Tensor,
    dropout: float,
) -> Tensor:
    """(B, c, H, Dh) of some queries; see `look_far`."""
    dtype = wide(q.dtype)
    scores = torch.einsum("bchd,behd->bhce", q.to(dtype), core_key.to(dtype))
    scores = (scores / math.sqrt(q.shape[3])).masked_fill(hidden, lowest(dtype))
    scores = torch.cat((total.transpose(1, 2)[..., None], scores), dim=3)
    near, far = scores.softmax(-1).split((1, scores.shape[3] - 1), dim=3)
    far = functional.dropout(far, dropout, training=dropout > 0)
    found = torch.einsum("bhce,behd->bchd", far, core_value.to(dtype))
    return (near.transpose(1, 2) * y.to(dtype) + found).to(y.dtype)
