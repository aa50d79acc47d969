"""Local attention for GPUs: the kernels of exact attention, which go only through what is seen.

Groups of a stride are the chunks of `Span`, with what is left and right of them bounded. Every d-th
frame of an item, by its dilation d, makes an item of its own: one copy of the operands where d is
above 1, none else.

Legend: see `speechattn.kernels.attention.triton`; d the dilation, Hkv heads of keys.
"""

import math

import torch
from torch import Tensor

from speechattn.kernels.attention.dropout import draw_seed
from speechattn.kernels.attention.triton.common import Span
from speechattn.kernels.attention.triton.exact import Attention
from speechattn.kernels.attention.window import Window


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    window: Window,
    dropout: float = 0.0,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention within windows; see `local_attention.attention_and_totals`.

    Args:
        q: (B, T, H, Dh).
        k: (B, T, Hkv, Dh).
        v: (B, T, Hkv, Dh).
        lengths: (B,) int64.
        window: which keys a query sees.
        dropout: of the attention weights, in [0, 1]. The draw is not the one of the torch path.
        sink: (H,) or None.

    Returns:
        (B, T, H, Dh), and the logarithms of the denominators (B, T, H) float32; both zero where a
        query is not real.

    Raises:
        ValueError: float64.
    """
    if q.dtype == torch.float64:
        raise ValueError("the Triton kernel of local attention takes float32 and halves, not "
                         "float64")  # fmt: skip
    frames, d = q.shape[1], window.dilation
    # Of no more frames than there are: the kernels count in 32 bits.
    before, after = (
        min(x, frames) for x in (window.before, window.right - (window.stride - 1) // 2)
    )
    stride = min(window.stride, max(frames, 1))
    span = Span(stride, before, after, window.causal and window.stride > 1)
    if window.causal and window.stride == 1:
        span = Span(1, before, 0)
    if d > 1:
        q, k, v = (_phases(x, d) for x in (q, k, v))
        lengths = (lengths[:, None] + d - 1 - torch.arange(d, device=q.device)).div(
            d, rounding_mode="floor"
        ).flatten()  # fmt: skip
    seed = draw_seed() if dropout > 0 else 0
    y, total = Attention.apply(q, k, v, lengths, lengths, sink, None, span, dropout, seed)
    total = (total * math.log(2)).masked_fill(total == math.inf, 0.0).transpose(1, 2)  # (B, T, H)
    if d > 1:
        y, total = (_frames(x, d, frames) for x in (y, total))
    return y, total


def _phases(x: Tensor, d: int) -> Tensor:
    """(B, T, H, Dh) to (B d, ceil(T / d), H, Dh), zero where there is no frame."""
    short = -x.shape[1] % d
    if short:
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, short))
    return x.unflatten(1, (x.shape[1] // d, d)).transpose(1, 2).flatten(0, 1)


def _frames(x: Tensor, d: int, frames: int) -> Tensor:
    """(B d, ceil(T / d), ...) to (B, T, ...)."""
    return x.unflatten(0, (x.shape[0] // d, d)).transpose(1, 2).flatten(1, 2)[:, :frames]
