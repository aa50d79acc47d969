"""Softmax attention with scores filtered over neighbouring queries and keys (2504.00927).

    s_ij = q_i k_j / sqrt(Dh), and 0 where query i does not see key j
    c_ij = sum over a, b of filter[a, b] s_(i - A + 1 + a, j - A' // 2 + b)
    w_i  = softmax of c_i over the keys that i sees, per head
    y_i  = sum over heads g of a group, and keys j, of mix[h, g] w_ij of g  times  v_j of h

The filter sees a query and the A - 1 before it, and keys to both sides (sections 3.1 and 3.3).
There is no look-ahead: masked scores are 0 in the filter, and not in the softmax.

Legend: see `speechattn.kernels`; A queries and A' keys of a filter, M heads that are mixed.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.utils.checkpoint import checkpoint

from speechattn.kernels.attention.tiles import tiles
from speechattn.kernels.backend import choose
from speechattn.kernels.precision import HALF, operands
from speechattn.masks import padding_mask


def multi_token_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    *,
    filters: Tensor,
    mix: Tensor,
    causal: bool = False,
    dropout: float = 0.0,
    past: int = 0,
) -> Tensor:
    """Attend with filtered scores, a tile of queries at a time: never (B, H, Tq, Tk).

    Args:
        q: (B, Tq, H, Dh), of which the first `past` are only for the filter.
        k, v: (B, Tk, H, Dh), Tk at least Tq; the last query is at the last key.
        lengths: (B,) int64, keys of each item.
        filters: (H, A, A').
        mix: (H / M, M, M), from heads g to heads h.
        causal: a query sees keys up to its own.
        dropout: of the weights.
        past: queries without an output.

    Returns:
        (B, Tq - past, H, Dh), zero beyond an item's frames.
    """
    q, k, v = operands(q, k, v)
    whole = choose(q.device) == "reference"
    with torch.autocast(q.device.type, enabled=False):
        filters, mix = (x.float() if q.dtype in HALF else x.to(q.dtype) for x in (filters, mix))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, Tq, Dh)
        batch, heads, frames, _ = q.shape
        first = k.shape[2] - frames  # place of the first query
        parts = [q[:, :, :0]]
        cuts = [(past, frames)]
        if not whole:
            of = tiles(frames - past, batch * heads, None, q.device, keys=k.shape[2])
            cuts = [(past + tile.start, past + tile.stop) for tile in of]
        for start, stop in cuts:
            halo = max(start - filters.shape[1] + 1, 0)
            # Keys that none of these queries see are 0 to the filter, and out of the softmax.
            last = first + stop if causal else k.shape[2]
            part = (start - halo, first + halo, causal, dropout, q[:, :, halo:stop],
                    k[:, :, :last], v[:, :, :last], lengths, filters, mix)  # fmt: skip
            if torch.is_grad_enabled() and not whole:
                parts.append(checkpoint(_tile, *part, use_reentrant=False))
            else:
                parts.append(_tile(*part))
        y = torch.cat(parts, 2).transpose(1, 2)
    real = padding_mask(lengths, k.shape[2])[:, first + past :]
    return y.masked_fill(~real[..., None, None], 0.0)


def _tile(halo: int, place: int, causal: bool, dropout: float, *tensors: Tensor) -> Tensor:
    """Compute (B, H, c, Dh) of the queries after the halo; see `multi_token_attention`.

    The first `halo` queries, at most A - 1, are only for the filter; the first is at key `place`.
    """
    q, k, v, lengths, filters, mix = tensors
    keys, rows = k.shape[2], q.shape[2]
    scores = (q @ k.transpose(2, 3)).to(filters.dtype) / math.sqrt(q.shape[3])
    j = torch.arange(keys, device=q.device)
    i = torch.arange(place, place + rows, device=q.device)[:, None]
    seen = (j < lengths[:, None])[:, None, None] & (i < lengths[:, None, None])[:, None]
    if causal:
        seen = seen & (j <= i)  # (B, 1, rows, m)
    scores = scores.masked_fill(~seen, 0.0)
    above, width = filters.shape[1] - 1, filters.shape[2]
    # A - 1 rows above, of zeros where there is no query.
    scores = torch.nn.functional.pad(
        scores, (width // 2, width - 1 - width // 2, max(above - halo, 0), 0)
    )
    scores = conv2d(scores, filters[:, None], groups=len(filters))  # (B, H, c, m)
    seen = seen[:, :, halo:]
    # Finite: rows that see no key give no NaN.
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
    weights = torch.nn.functional.dropout(weights, dropout, training=dropout > 0)
    grouped = weights.unflatten(1, (len(mix), -1))  # (B, H / M, M, c, m)
    weights = torch.einsum("nhg,bngij->bnhij", mix, grouped).flatten(1, 2)
    return weights.to(v.dtype) @ v
