"""Rotary positions (RoFormer, 2104.09864, section 3.2)."""

import torch
from torch import Tensor


def rotate(x: Tensor, start: int = 0) -> Tensor:
    """Rotate each pair of channels of a frame by an angle in proportion to the frame's index.

    The product of two rotated vectors depends only on the distance of their frames. Channel r is
    paired with r + Dh/2, and the angle is the index times 10000^(-2r/Dh).

    Args:
        x: (B, T, H, Dh), Dh even.
        start: index of the first frame.

    Returns:
        (B, T, H, Dh) in the dtype of x; angles are taken in float32.
    """
    frames, half = x.shape[1], x.shape[3] // 2
    index = torch.arange(start, start + frames, dtype=torch.float32, device=x.device)
    rate = 10000.0 ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angle = (index[:, None] * rate)[:, None]  # (T, 1, Dh/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
