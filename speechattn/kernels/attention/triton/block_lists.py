"""Lists of the blocks in a layout, made and read on the device.

A row's list has the place of the row in the layout, and is filled from its start: a tighter storage
would have to wait for the device to count.

Legend: see `speechattn.kernels.attention.triton`; L is B for a layout of each item, else 1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def block_lists(layout: Tensor) -> tuple[Tensor, Tensor]:
    """List the columns of each row of a layout, in their order.

    Args:
        layout: (L, H, rows, columns) bool.

    Returns:
        (L, H, rows, columns), int16 where that is enough; and their counts, (L, H, rows) int32.
    """
    rows, columns = layout.shape[2:]
    dtype = torch.int16 if columns < 1 << 15 else torch.int32
    lists = torch.empty(layout.shape, dtype=dtype, device=layout.device)
    counts = torch.zeros(layout.shape[:3], dtype=torch.int32, device=layout.device)
    if layout.numel() > 0:
        size = min(max(triton.next_power_of_2(columns), 16), 1024)
        marks = layout.contiguous().view(torch.uint8)
        _write[(counts.numel(),)](marks, lists, counts, columns, BLOCK=size)
    return lists, counts


@triton.jit
def _write(layout, lists, counts, columns, BLOCK: tl.constexpr):
    """Write the list of a row and its count."""
    row = tl.program_id(0).to(tl.int64)
    done = tl.zeros((), tl.int32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mark = tl.load(layout + row * columns + column, mask=column < columns, other=0)
        mark = mark.to(tl.int32)
        rank = done + tl.cumsum(mark, 0) - mark
        value = column.to(lists.dtype.element_ty)
        tl.store(lists + row * columns + rank, value, mask=mark != 0)
        done += tl.sum(mark, 0)
    tl.store(counts + row, done)


@triton.jit
def before(line, count, limit):
    """Count the numbers below a limit in a rising list of `count` numbers."""
    low = tl.zeros((), tl.int32)
    high = count
    while low < high:
        middle = (low + high) // 2
        below = tl.load(line + middle).to(tl.int32) < limit
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit
def line_of(lists, counts, b, h, heads, row, rows, columns, EACH: tl.constexpr):
    """Return the address of the list of a row of head h, item b, and its count."""
    if EACH:
        h += b * heads
    place = tl.cast(h, tl.int64) * rows + row
    return lists + place * columns, tl.load(counts + place)


@triton.jit
def collected(line, place, end, block):
    """Return the frames at these places of the blocks of a list; -1 from `end` on."""
    at = tl.load(line + place // block, mask=place < end, other=0).to(tl.int32)
    return tl.where(place < end, at * block + place % block, -1)
