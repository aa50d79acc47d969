"""Local attention: a frame sees a window of its neighbours, in time and memory linear in T.

The window is that of `speechattn.kernels.attention.window.AttentionWindow`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from speechattn.kernels.attention.dropout import draw_seed
from speechattn.kernels.attention.local_blocks import LocalAttention, lowest, skips_padding
from speechattn.kernels.attention.time_blocks import wide
from speechattn.kernels.attention.window import AttentionWindow
from speechattn.kernels.backend import choose
from speechattn.kernels.precision import operands
from speechattn.masks import padding_mask

# Queries of a step that are computed together.
_STEP = 64


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    *,
    window: AttentionWindow,
    dropout: float = 0.0,
    sink: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """Attend within windows, in a ragged batch.

    Args:
        q: (B, Tq, H, Dh) queries, the last of them at the last key: in a step there are fewer than
            keys.
        k, v: (B, Tk, Hkv, Dh); Hkv divides H, and neighbouring heads of queries share keys.
        lengths: (B,) int64, real keys.
        window: the keys that a query sees.
        dropout: of the attention weights, in [0, 1]; 0 outside of training.
        sink: (H,) a score that takes part in the softmax of every query and has no value, so that
            a head may attend to nothing (2309.17453); zeros add one to the denominator.
        start: index in its stream of the first key, from which stride and dilation count.

    Returns:
        (B, Tq, H, Dh), zero for queries that are not real; in autocast's dtype where it is on.

    Raises:
        ValueError: Hkv does not divide H.
    """
    return attention_and_totals(
        q, k, v, lengths, window=window, dropout=dropout, sink=sink, start=start, totals=False
    )[0]


def attention_and_totals(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    *,
    window: AttentionWindow,
    dropout: float = 0.0,
    sink: Tensor | None = None,
    start: int = 0,
    totals: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute `local_attention`, and the logarithm of the softmax's denominator.

    With it the result takes part in a softmax over more keys, as one key with that score and with
    the result as its value.

    Returns:
        As `local_attention`; and (B, Tq, H), float32 at least, finite where a query is not real, if
        `totals` are asked for.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"local_attention: {k.shape[2]} heads of keys do not divide {q.shape[2]} heads"
        )
    q, k, v = operands(q, k, v)
    # Without a stride only distances matter, not the place from which they are counted.
    inside = window.stride > 1 and start % (window.stride * window.dilation) > 0
    backend = choose(q.device, "local_attention", q)
    with torch.autocast(q.device.type, enabled=False):
        if q.shape[1] < k.shape[1] or inside:
            y, total = _few(
                q, k, v, lengths, window=window, dropout=dropout, sink=sink, start=start
            )
        elif backend == "triton":
            from speechattn.kernels.attention.triton.local import local_attention as kernel

            return kernel(q, k, v, lengths, window, dropout, sink)  # zero where nothing is real
        elif backend == "reference":
            y, total = reference(q, k, v, lengths, window, dropout, sink)
        else:
            options = window, dropout, draw_seed() if dropout > 0 else 0
            y, total = LocalAttention.apply(q, k, v, sink, lengths, *options, totals)
            if skips_padding(y.device):
                return y, total  # zero where nothing is real
    real = padding_mask(lengths, k.shape[1])[:, k.shape[1] - q.shape[1] :, None]  # (B, Tq, 1)
    y = y.masked_fill(~real[..., None], 0.0)
    return y, None if total is None else total.masked_fill(~real, 0.0)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    window: AttentionWindow,
    dropout: float = 0.0,
    sink: Tensor | None = None,
    start: int = 0,
) -> tuple[Tensor, Tensor]:
    """Compute the definition; see `attention_and_totals`. Makes (B, H, Tq, Tk) tensors."""
    dtype, (queries, heads, depth), keys = q.dtype, q.shape[1:], k.shape[1]
    q, k, v = (x.to(wide(dtype)) for x in (q, k, v))
    k, v = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (k, v))
    j = torch.arange(start, start + keys, device=q.device)
    seen = window.visible(j[keys - queries :, None], j)  # (Tq, Tk)
    seen = seen & padding_mask(lengths, keys)[:, None, None]  # (B, 1, Tq, Tk)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(depth)
    scores = scores.masked_fill(~seen, lowest(scores.dtype))
    if sink is not None:
        column = sink.to(scores)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), dim=3)
    weights = functional.dropout(scores.softmax(-1)[..., :keys], dropout, training=dropout > 0)
    y = torch.einsum("bhij,bjhd->bihd", weights, v)
    return y.to(dtype), scores.logsumexp(-1).transpose(1, 2)


def _few(
    *tensors: Tensor, window: AttentionWindow, dropout: float, sink: Tensor | None, start: int
) -> tuple[Tensor, Tensor]:
    """Compute `reference` for a few queries at a time, with the keys that they may see."""
    q, k, v, lengths = tensors
    ahead, parts = k.shape[1] - q.shape[1], []
    over = (window.right + window.stride) * window.dilation
    for begin in range(0, q.shape[1], _STEP):
        stop = min(begin + _STEP, q.shape[1])
        first = max(ahead + begin - window.reach, 0)
        last = ahead + stop if window.causal else min(ahead + stop + over, k.shape[1])
        # The reference wants its last query at its last key.
        part = functional.pad(q[:, begin:stop], (0, 0, 0, 0, 0, last - ahead - stop))
        seen = slice(first, last)
        left = (lengths - first).clamp(min=0)
        keys = k[:, seen], v[:, seen]
        y, total = reference(part, *keys, left, window, dropout, sink, start + first)
        parts.append((y[:, : stop - begin], total[:, : stop - begin]))
    y, total = zip(*parts, strict=True)
    return torch.cat(y, dim=1), torch.cat(total, dim=1)
