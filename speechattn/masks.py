"""Masks, built from lengths where they are used."""

import torch
from torch import Tensor


def padding_mask(lengths: Tensor, max_len: int | None = None) -> Tensor:
    """True where a frame is real.

    Args:
        lengths: (B,) int64.
        max_len: T; the longest of `lengths` by default.

    Returns:
        (B, T) bool.
    """
    if max_len is None:
        max_len = int(lengths.max())
    return torch.arange(max_len, device=lengths.device) < lengths[:, None]
