"""Crops of a long video on disk until the speaker is known: an hour of one face is 830 MB."""

import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from speechattn.errors import SpeechattnError

# Bytes of crops that are kept in memory before the first goes to disk: five minutes of one face.
KEPT = 64 << 20
# Crops that are written and read at a time.
BLOCK = 64


class Spool:
    """A temporary file that the faces of a video share; there is none until it is needed.

    It lies where temporary files do (TMPDIR) and has no name: it is gone with the process.

    Args:
        limit: bytes that may be kept in memory, over all faces.
    """

    def __init__(self, limit: int = KEPT):
        self.limit = limit
        self.kept = 0
        self._file = None
        self._end = 0

    @property
    def used(self) -> int:
        """Bytes on disk."""
        return self._end

    @property
    def full(self) -> bool:
        """Whether more is kept in memory than may be."""
        return self.kept > self.limit

    def write(self, block: np.ndarray) -> int:
        """Append an array; where it is."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()
            self._file.seek(self._end)
            self._file.write(block.data)
            self._file.flush()
        except OSError as error:
            raise SpeechattnError(
                f"{tempfile.gettempdir()}: no room for the mouth crops of a long video ({error}); "
                "set TMPDIR to a folder with more, 830 MB for an hour of one face"
            ) from error
        offset, self._end = self._end, self._end + block.nbytes
        return offset

    def read(self, offset: int, shape: Sequence[int]) -> np.ndarray:
        """The uint8 array that was written there."""
        self._file.seek(offset)
        found = np.frombuffer(self._file.read(int(np.prod(shape))), dtype=np.uint8)
        return found.reshape(shape)


class Crops(Sequence):
    """The crops of one face, uint8 (side, side) each, in memory or on disk.

    Args:
        spool: where they go once there are many.
    """

    def __init__(self, spool: Spool):
        self._spool = spool
        self._offsets: list[int] = []  # of blocks of BLOCK crops, the first ones of the face
        self._tail: list[np.ndarray] = []
        self._shape: tuple[int, ...] = ()

    def append(self, crop: np.ndarray) -> None:
        """Add the next one."""
        self._tail.append(crop)
        self._shape = crop.shape
        self._spool.kept += crop.nbytes
        if self._spool.full:
            self.flush()

    def flush(self) -> None:
        """Put all whole blocks on disk."""
        whole = len(self._tail) // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            block = np.stack(self._tail[start : start + BLOCK])
            self._offsets.append(self._spool.write(block))
            self._spool.kept -= block.nbytes
        del self._tail[:whole]

    def __len__(self) -> int:
        return len(self._offsets) * BLOCK + len(self._tail)

    def __getitem__(self, index: int | slice) -> np.ndarray:
        if isinstance(index, slice):
            picked = [self[i] for i in range(*index.indices(len(self)))]
            return np.stack(picked) if picked else np.zeros((0, *self._shape), dtype=np.uint8)
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        block, place = divmod(index % len(self), BLOCK)
        if block >= len(self._offsets):
            return self._tail[index % len(self) - len(self._offsets) * BLOCK]
        size = int(np.prod(self._shape))
        return self._spool.read(self._offsets[block] + place * size, self._shape)

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self.blocks():
            yield from block

    def blocks(self, before: int = 0, after: int = 0) -> Iterator[np.ndarray]:
        """All crops in order, uint8 (n, side, side) at a time, read as they are asked for.

        Args:
            before: how often the first one is repeated.
            after: how often the last one is.
        """
        yield from self._repeated(0, before)
        for offset in self._offsets:
            yield self._spool.read(offset, (BLOCK, *self._shape))
        if self._tail:
            yield np.stack(self._tail)
        yield from self._repeated(-1, after)

    def _repeated(self, index: int, times: int) -> Iterator[np.ndarray]:
        for start in range(0, times, BLOCK):
            yield np.repeat(self[index][None], min(BLOCK, times - start), 0)

    def array(self, before: int = 0, after: int = 0) -> np.ndarray:
        """All crops in memory, uint8 (before + T + after, side, side); see `blocks`."""
        found = np.empty((before + len(self) + after, *self._shape), dtype=np.uint8)
        at = 0
        for block in self.blocks(before, after):
            found[at : at + len(block)] = block
            at += len(block)
        return found
