"""A moving window over a stream of arrays."""

from collections.abc import Iterator

import numpy as np


class Rolling:
    """A stretch of a stream, which moves on and forgets what it has left behind.

    Args:
        pieces: arrays (n, ...) alike but in n, one after another.
    """

    def __init__(self, pieces: Iterator[np.ndarray]):
        self._pieces = pieces
        self._kept: list[np.ndarray] = []
        self.start = self.end = 0
        self.ended = False

    def fill(self, stop: int) -> None:
        """Read on until `end` is `stop` or more, or the stream has ended."""
        while self.end < stop and not self.ended:
            piece = next(self._pieces, None)
            if piece is None:
                self.ended = True
            else:
                self._kept.append(piece)
                self.end += len(piece)

    def forget(self, before: int) -> None:
        """Drop whole pieces that lie before a place."""
        while self._kept and self.start + len(self._kept[0]) <= before:
            self.start += len(self._kept.pop(0))

    def get(self, start: int, stop: int) -> np.ndarray:
        """Return a copy of (stop - start, ...), fewer where the stream ends before.

        Raises:
            ValueError: the start was forgotten.
        """
        if start < self.start:
            raise ValueError(f"{start} was forgotten: the stretch starts at {self.start}")
        self.fill(stop)
        parts, position = [], self.start
        for piece in self._kept:
            if position < stop and position + len(piece) > start:
                parts.append(piece[max(0, start - position) : stop - position])
            position += len(piece)
        if parts:
            return np.concatenate(parts)
        return self._kept[-1][:0].copy() if self._kept else np.zeros(0, dtype=np.float32)
