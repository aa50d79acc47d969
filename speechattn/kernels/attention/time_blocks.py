"""How a ragged batch is cut along time for a running sum, and what of it is read and written.

Legend beyond the package's: c frames of a block, n items of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Neighbouring frames of the items that reach so far.

    Attributes:
        items: which of the batch, the longest first.
        count: n, how many.
        start: first frame.
        stop: one past the last frame.
        hidden: (n, c) bool, True beyond an item's length; None where there is nothing.
    """

    items: slice | Tensor
    count: int
    start: int
    stop: int
    hidden: Tensor | None


def blocks(lengths: Tensor, frames: int, size: int) -> list[Block]:
    """Cut a batch along time, the first block first, leaving out what is padding.

    Items stand in the same order in every block, and a block has the first of them: a state of all
    items is cut to those of a block from the front.

    Args:
        lengths: (B,) int64.
        frames: T.
        size: frames of a block at most.
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
    """A block of (B, T, H, Dh) as (n H, c, Dh), float32 at least, zero where it is padding."""
    part = x[block.items, block.start : block.stop].to(wide(x.dtype))
    if block.hidden is not None:
        part = part.masked_fill(block.hidden[..., None, None], 0.0)
    return part.transpose(1, 2).flatten(0, 1)


def put(y: Tensor, block: Block, x: Tensor, add: bool = False) -> None:
    """Write (n H, c, Dh) into a block of (B, T, H, Dh), where it is not padding.

    Args:
        y: zeros, or what was put there.
        block: where.
        x: what.
        add: to what is there.
    """
    part = x.unflatten(0, (block.count, -1)).transpose(1, 2)  # (n, c, H, Dh)
    if block.hidden is not None:
        part = part.masked_fill(block.hidden[..., None, None], 0.0)
    frames = slice(block.start, block.stop)
    if add:
        y[block.items, frames] += part
    else:
        y[block.items, frames] = part


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are computed in: float32 for halves."""
    return torch.promote_types(dtype, torch.float32)
