"""Absolute positions of "Attention Is All You Need" (1706.03762, section 3.5)."""

import math

import torch
from torch import Tensor


def sinusoids(length: int, width: int) -> Tensor:
    """Return (length, width) float32, sines in the even columns, cosines in the odd ones."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(1e4) / width))
    table = torch.empty(length, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)
    return table


def grown(table: Tensor, length: int, device: torch.device) -> Tensor:
    """Return a table of `sinusoids` on a device, twice the length asked for if it was too short."""
    if length <= table.size(0) and table.device == device:
        return table
    with torch.inference_mode(False):  # kept, so training has to be able to use it
        return sinusoids(max(2 * length, table.size(0)), table.size(1)).to(device)
