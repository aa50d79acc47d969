"""Local attention for GPUs, by the kernels of exact attention, which read only visible keys.

Groups of a stride are the chunks of `KeyRange`, with bounds to the left and right. With a dilation
d above 1 the operands are copied: every d-th frame of an item makes an item of its own.
"""

import math

import torch
from torch import Tensor

from speechattn.kernels.attention.dropout import draw_seed
from speechattn.kernels.attention.triton.common import KeyRange, refuse_double
from speechattn.kernels.attention.triton.exact import Attention
from speechattn.kernels.attention.window import AttentionWindow


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    window: AttentionWindow,
    dropout: float = 0.0,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `speechattn.kernels.attention.local.attention_and_totals`, with another dropout.

    Returns:
        (B, T, H, Dh), and the logarithms of the denominators (B, T, H) float32; both zero where a
        query is not real.
    """
    refuse_double("local attention", q)
    frames, d = q.shape[1], window.dilation
    # At most the frames there are: the kernels count in 32 bits.
    before, after = (
        min(x, frames) for x in (window.before, window.right - (window.stride - 1) // 2)
    )
    stride = min(window.stride, max(frames, 1))
    key_range = KeyRange(stride, before, after, window.causal and window.stride > 1)
    if window.causal and window.stride == 1:
        key_range = KeyRange(1, before, 0)
    if d > 1:
        q, k, v = (_phases(x, d) for x in (q, k, v))
        lengths = (lengths[:, None] + d - 1 - torch.arange(d, device=q.device)).div(
            d, rounding_mode="floor"
        ).flatten()  # fmt: skip
    seed = draw_seed() if dropout > 0 else 0
    y, total = Attention.apply(q, k, v, lengths, lengths, sink, None, key_range, dropout, seed)
    total = (total * math.log(2)).masked_fill(total == math.inf, 0.0).transpose(1, 2)  # (B, T, H)
    if d > 1:
        y, total = (_frames(x, d, frames) for x in (y, total))
    return y, total


def _phases(x: Tensor, d: int) -> Tensor:
    """Reshape (B, T, H, Dh) to (B d, ceil(T / d), H, Dh), zero where there is no frame."""
    short = -x.shape[1] % d
    if short:
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, short))
    return x.unflatten(1, (x.shape[1] // d, d)).transpose(1, 2).flatten(0, 1)


def _frames(x: Tensor, d: int, frames: int) -> Tensor:
    """Reshape (B d, ceil(T / d), ...) to (B, T, ...)."""
    return x.unflatten(0, (x.shape[0] // d, d)).transpose(1, 2).flatten(1, 2)[:, :frames]
