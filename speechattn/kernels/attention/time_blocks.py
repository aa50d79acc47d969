"""Blocks of a ragged batch along time, for a running sum.

Legend: see `speechattn.kernels`; c frames of a block, n items of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Neighbouring frames of the items that are long enough.

    Attributes:
        items: indices in the batch, the longest first.
        count: n.
        start, stop: first frame, and one past the last.
        hidden: (n, c) bool, True beyond an item's length; None without padding.
    """

    items: slice | Tensor
    count: int
    start: int
    stop: int
    hidden: Tensor | None


def blocks(lengths: Tensor, frames: int, size: int) -> list[Block]:
    """Cut a batch along time, in order, without the padding.

    Items have the same order in every block, and a block has the first n of them: so has the state
    of all items. Lengths are (B,) int64, `frames` is T, and `size` is the most frames of a block.
    """
    batch, found = len(lengths), []
    everything = slice(0, batch)
    on_cpu = lengths.device.type == "cpu"
    if not on_cpu:  # reading lengths would wait for the device
        for start in range(0, frames, size):
            place = torch.arange(start, min(start + size, frames), device=lengths.device)
            hidden = place >= lengths[:, None]
            found.append(Block(everything, batch, start, start + len(place), hidden))
        return found
    counts, order = lengths.sort(descending=True, stable=True)
    in_order = bool((order[1:] > order[:-1]).all())
    for start in range(0, min(frames, int(counts[0]) if batch else 0), size):
        n = int((counts > start).sum())
        # The longest item may be shorter than the batch's tensors are.
        place = torch.arange(start, min(start + size, frames, int(counts[0])))
        hidden = place >= counts[:n, None] if counts[n - 1] <= place[-1] else None
        items = slice(0, n) if in_order else order[:n]
        found.append(Block(items, n, start, start + len(place), hidden))
    return found


def take(x: Tensor, block: Block) -> Tensor:
    """Return a block of (B, T, H, Dh) as (n H, c, Dh), float32 at least, zero in the padding."""
    part = x[block.items, block.start : block.stop].to(wide(x.dtype))
    if block.hidden is not None:
        part = part.masked_fill(block.hidden[..., None, None], 0.0)
    return part.transpose(1, 2).flatten(0, 1)


def put(y: Tensor, block: Block, x: Tensor, add: bool = False) -> None:
    """Write (n H, c, Dh) to a block of y (B, T, H, Dh), or add it; zero in the padding."""
    part = x.unflatten(0, (block.count, -1)).transpose(1, 2)  # (n, c, H, Dh)
    if block.hidden is not None:
        part = part.masked_fill(block.hidden[..., None, None], 0.0)
    frames = slice(block.start, block.stop)
    if add:
        y[block.items, frames] += part
    else:
        y[block.items, frames] = part


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: float32 for half precision."""
    return torch.promote_types(dtype, torch.float32)
