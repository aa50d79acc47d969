"""Groups and tiles of a batch, whose scores fit into a cache."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from speechattn.masks import Chunks, chunk_mask, padding_mask

# Scores of items that are computed together. An item alone has no padding, which pays from about
# 100 frames on; below, the calls for each item cost more.
GROUP_SCORES = 1 << 16
# Scores of a tile of queries, all heads: 8 MB, what the cores share. Within that, 128 queries were
# the fastest at 250, 1000 and 4000 frames: fewer make thin products, more make a wide band of
# distances.
TILE_SCORES = 1 << 21
_SMALLEST, _LARGEST = 64, 128  # queries a tile on a CPU
# A GPU wants few and large kernels; 256 MB of float32.
GPU_SCORES = 1 << 26


@dataclass(frozen=True)
class Group:
    """Neighbouring items of a batch that are computed together.

    Attributes:
        start, stop: first item, and one past the last.
        frames: the largest of their lengths.
        padding: (G, 1, 1, frames) bool, True beyond an item's length; None where there is none.
    """

    start: int
    stop: int
    frames: int
    padding: Tensor | None


@dataclass(frozen=True)
class Tile:
    """Queries `start` to `stop` and the keys `first` to `last` that they see, ends excluded.

    Attributes:
        hidden: (c, m) bool, True where a query does not see a key; None where none is hidden.
    """

    start: int
    stop: int
    first: int
    last: int
    hidden: Tensor | None


def groups(lengths: Tensor, frames: int, heads: int) -> list[Group]:
    """Cut a batch: long items alone, short ones together until their scores fill the cache.

    Groups without a frame are left out. Lengths (B,) int64 are at most `frames`, T of the batch.
    """
    batch = len(lengths)
    if lengths.device.type != "cpu":  # reading lengths would wait for the device
        padding = ~padding_mask(lengths, frames)[:, None, None]
        return [Group(0, batch, frames, padding)] if batch and frames else []
    found = []
    each = max(1, GROUP_SCORES // max(heads * frames * frames, 1))
    counts = lengths.tolist()
    for start in range(0, batch, each):
        members = counts[start : start + each]
        longest = max(members)
        if longest == 0:
            continue
        padding = None
        if min(members) < longest:
            padding = ~padding_mask(lengths[start : start + each], longest)[:, None, None]
        found.append(Group(start, start + len(members), longest, padding))
    return found


def tiles(
    frames: int, rows: int, chunks: Chunks | None, device: torch.device, keys: int | None = None
) -> Iterator[Tile]:
    """Cut the queries of a group of `rows` items times heads, by what they see.

    There are as many `keys` as queries (`frames`) where left out.
    """
    keys = frames if keys is None else keys
    size = _tile_size(keys, rows, chunks, device)
    start = 0
    while start < frames:
        stop = min(start + size, frames)
        if chunks is None:
            first, last, hidden = 0, keys, None
        else:
            # A tile within one chunk needs no mask; one over several ends with a chunk.
            if chunks.size >= size:
                stop = min(stop, (start // chunks.size + 1) * chunks.size)
            first, last = chunks.window(start, stop, keys)
            hidden = None
            if start // chunks.size != (stop - 1) // chunks.size:
                hidden = ~chunk_mask(keys, chunks, device, (start, stop), (first, last))
        yield Tile(start, stop, first, last, hidden)
        start = stop


def _tile_size(frames: int, rows: int, chunks: Chunks | None, device: torch.device) -> int:
    """Return the number of queries of a tile."""
    if device.type == "cpu":
        wanted = TILE_SCORES // (rows * frames) // 16 * 16
        size = min(max(wanted, _SMALLEST), _LARGEST)
    else:
        size = max(GPU_SCORES // (rows * frames), 16)
    if chunks is not None and chunks.size < size:
        size = size // chunks.size * chunks.size
    return size
