"""Masks, built from lengths where they are used."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunks:
    """A rule of visible frames: a frame sees its own chunk, and frames to the left of it.

    Frame i is in chunk i // size. It sees frame j where

        (i // size) * size - left <= j < (i // size + 1) * size.

    Size 1 with everything to the left is causal attention.

    Attributes:
        size: frames of a chunk, at least 1.
        left: frames seen to the left of the chunk; -1 for all of them.
    """

    size: int
    left: int = -1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"Chunks: size is at least 1 frame, not {self.size}")
        if self.left < -1:
            raise ValueError(f"Chunks: left is -1 (all) or a number of frames, not {self.left}")

    def window(self, first: int, last: int, frames: int) -> tuple[int, int]:
        """Return the range of keys that any of the queries from `first` to `last` sees.

        Args:
            first: first query.
            last: one past the last query, above `first`.
            frames: T, keys there are.

        Returns:
            The first key and one past the last, within 0 and T.
        """
        start = 0 if self.left < 0 else max(first // self.size * self.size - self.left, 0)
        stop = min(((last - 1) // self.size + 1) * self.size, frames)
        return min(start, stop), stop


def padding_mask(lengths: Tensor, max_len: int | None = None) -> Tensor:
    """Return a mask, True where a frame is real.

    Args:
        lengths: (B,) int64.
        max_len: T; the longest of `lengths` by default.

    Returns:
        (B, T) bool.
    """
    if max_len is None:
        max_len = int(lengths.max())
    return torch.arange(max_len, device=lengths.device) < lengths[:, None]


def without_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """Set frames beyond an item's length to zero.

    Args:
        x: (B, T, ...).
        lengths: (B,) int64.

    Returns:
        As x; x itself where nothing is padded, which is checked on a CPU only, where it is free,
        and not during an export, whose graph has to serve other lengths too.
    """
    frames = x.shape[1]
    checks = lengths.device.type == "cpu" and not torch.compiler.is_exporting()
    if checks and bool((lengths >= frames).all()):
        return x
    real = padding_mask(lengths, frames)
    return x.masked_fill(~real.view(*real.shape, *(1 for _ in x.shape[2:])), 0.0)


def chunk_mask(
    frames: int,
    chunks: Chunks,
    device: torch.device | str = "cpu",
    queries: tuple[int, int] | None = None,
    keys: tuple[int, int] | None = None,
) -> Tensor:
    """Return a mask, True where a query sees a key.

    Args:
        frames: T.
        chunks: the rule.
        device: where to build the mask.
        queries: first query and one past the last; all T by default.
        keys: first key and one past the last; all T by default.

    Returns:
        (T, T) bool, one row per query; only the rows and columns asked for.
    """
    i = torch.arange(*(queries or (0, frames)), device=device)[:, None]
    j = torch.arange(*(keys or (0, frames)), device=device)
    begin = i.div(chunks.size, rounding_mode="floor") * chunks.size
    seen = j < begin + chunks.size
    if chunks.left >= 0:
        seen &= j >= begin - chunks.left
    return seen
