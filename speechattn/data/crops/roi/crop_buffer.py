"""Crops of a long video on disk until the speaker is known: an hour of one face is 830 MB."""

import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from speechattn.errors import SpeechattnError

# Bytes of crops held in memory before the first go to disk: five minutes of one face.
MEMORY_LIMIT = 64 << 20
# Crops that are written and read at a time.
BLOCK = 64


class SpillFile:
    """A temporary file that the faces of a video share; there is none until it is needed.

    It lies where temporary files do (TMPDIR) and has no name: it is gone with the process.

    Args:
        limit: bytes held in memory at most, over all faces.
    """

    def __init__(self, limit: int = MEMORY_LIMIT):
        self.limit = limit
        self.in_memory = self.on_disk = 0
        self._file = None

    @property
    def needed(self) -> bool:
        """Return whether more is in memory than the limit."""
        return self.in_memory > self.limit

    def write(self, block: np.ndarray) -> int:
        """Append an array and return its offset."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()
            self._file.seek(self.on_disk)
            self._file.write(block.data)
            self._file.flush()
        except OSError as error:
            raise SpeechattnError(
                f"{tempfile.gettempdir()}: no room for the mouth crops of a long video ({error}); "
                "set TMPDIR to a folder with more, 830 MB for an hour of one face"
            ) from error
        offset, self.on_disk = self.on_disk, self.on_disk + block.nbytes
        return offset

    def read(self, offset: int, shape: Sequence[int]) -> np.ndarray:
        """Read the uint8 array that was written at an offset."""
        self._file.seek(offset)
        data = np.frombuffer(self._file.read(int(np.prod(shape))), dtype=np.uint8)
        return data.reshape(shape)


class CropBuffer(Sequence):
    """The crops of one face, uint8 (side, side) each, in memory or on disk.

    Args:
        spill: takes whole blocks once there are many.
    """

    def __init__(self, spill: SpillFile):
        self._spill = spill
        self._offsets: list[int] = []  # of blocks of BLOCK crops, the first ones of the face
        self._tail: list[np.ndarray] = []
        self._shape: tuple[int, ...] = ()

    def append(self, crop: np.ndarray) -> None:
        """Add the next crop."""
        self._tail.append(crop)
        self._shape = crop.shape
        self._spill.in_memory += crop.nbytes
        if self._spill.needed:
            self.flush()

    def flush(self) -> None:
        """Put all whole blocks on disk."""
        whole = len(self._tail) // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            block = np.stack(self._tail[start : start + BLOCK])
            self._offsets.append(self._spill.write(block))
            self._spill.in_memory -= block.nbytes
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
        return self._spill.read(self._offsets[block] + place * size, self._shape)

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self.blocks():
            yield from block

    def blocks(self, before: int = 0, after: int = 0) -> Iterator[np.ndarray]:
        """Yield all crops in order, uint8 (n, side, side) at a time, read as they are asked for.

        The first one is repeated `before` times, the last one `after` times.
        """
        yield from self._repeated(0, before)
        for offset in self._offsets:
            yield self._spill.read(offset, (BLOCK, *self._shape))
        if self._tail:
            yield np.stack(self._tail)
        yield from self._repeated(-1, after)

    def _repeated(self, index: int, times: int) -> Iterator[np.ndarray]:
        for start in range(0, times, BLOCK):
            yield np.repeat(self[index][None], min(BLOCK, times - start), 0)

    def array(self, before: int = 0, after: int = 0) -> np.ndarray:
        """Read all crops, uint8 (before + T + after, side, side); see `blocks`."""
        out, start = np.empty((before + len(self) + after, *self._shape), dtype=np.uint8), 0
        for block in self.blocks(before, after):
            out[start : start + len(block)] = block
            start += len(block)
        return out
