"""The crop store: grey crops of many clips in a few large files, read without a video decoder.

Crops are kept without loss, so that training sees the bytes that `MouthCropper` made and that
`Transcriber` will see again. A clip is cut into blocks of 25 frames; in a block every frame is
replaced by its difference to the one before (the first: row by row), and the differences, mostly
around zero, are Huffman coded by zlib. Measured on GRID (`benchmarks/crop_store.py`), a clip of 75
frames of 96x96 on one core: 235 kB and 3 ms to read. Raw bytes take 691 kB and 0.1 ms (Lhotse Shar
694 kB and 0.9 ms), but a 400-hour corpus then takes 360 GB and is read from disk again every epoch;
npz 398 kB and 3 ms; PNG frames 293 kB and 8 ms; H.264 without loss 221 kB and 8 ms, FFV1 228 kB and
14 ms. Nothing lossless is both smaller and faster. JPEG frames at quality 95 are (187 kB, 2.3 ms),
with loss: a fifth saved, at the price of applying the same loss in `Transcriber`.

On disk: `crops-00000.bin`, ... hold the blocks end to end; `index.jsonl` has a line for each clip,
written after its blocks are. A line that is not complete is not there. Nothing is ever changed in
place, so readers may open the store while it is written.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechattn.errors import SpeechattnError

_INDEX = "index.jsonl"
_BLOCK = 25  # frames; a shorter read decodes only the blocks that it touches
_SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class CropInfo:
    """What the index says about one clip.

    Attributes:
        frames: number of frames T.
        height: pixels.
        width: pixels.
        fps: frames per second.
        detected: fraction of the pictures looked at in which the face was found.
    """

    frames: int
    height: int
    width: int
    fps: float
    detected: float = 1.0


@dataclass(frozen=True)
class _Entry:
    info: CropInfo
    shard: int
    offset: int
    blocks: tuple[int, ...]  # bytes of each


@dataclass(frozen=True)
class EncodedCrop:
    """A clip as it is stored; made by `encode`, in a worker if need be."""

    info: CropInfo
    blocks: tuple[bytes, ...]


def encode(frames: np.ndarray, fps: float, detected: float = 1.0) -> EncodedCrop:
    """Packs a clip.

    Args:
        frames: uint8 (T, H, W), T at least 1.
        fps: frames per second.
        detected: see `CropInfo`.
    """
    if frames.dtype != np.uint8 or frames.ndim != 3 or 0 in frames.shape:
        raise ValueError(f"crops must be uint8 (T, H, W), not {frames.dtype} {frames.shape}")
    blocks = []
    for start in range(0, len(frames), _BLOCK):
        block = frames[start : start + _BLOCK]
        delta = block.copy()
        delta[1:] -= block[:-1]  # modulo 256
        delta[0, 1:] -= block[0, :-1]
        # Run-length matches only: camera noise leaves no longer ones worth the search.
        packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
        blocks.append(packer.compress(delta.tobytes()) + packer.flush())
    count, height, width = frames.shape
    info = CropInfo(count, height, width, float(fps), float(detected))
    return EncodedCrop(info, tuple(blocks))


def _decode(block: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (frames of the block, H, W)."""
    # bytearray: numpy may then write into it.
    out = np.frombuffer(bytearray(zlib.decompress(block)), dtype=np.uint8)
    out = out.reshape(-1, height, width)
    np.add.accumulate(out[0], axis=0, dtype=np.uint8, out=out[0])
    for i in range(1, len(out)):
        out[i] += out[i - 1]
    return out


class CropStore:
    """Reads crops. Cheap to open, picklable, and safe in forked DataLoader workers.

    The index is read when the store is opened; clips added later are seen by opening it again.

    Args:
        folder: of a store that `CropWriter` made.

    Raises:
        SpeechattnError: there is no store in `folder`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / _INDEX).is_file():
            raise SpeechattnError(f"{folder}: no crop store here ({_INDEX} is missing)")
        self._entries = _read_index(self.folder)[0]
        self._files: dict[int, int] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def keys(self) -> list[str]:
        """Keys in the order in which they were added."""
        return list(self._entries)

    def info(self, key: str) -> CropInfo:
        """Size and rate of a clip.

        Raises:
            KeyError: no such clip.
        """
        return self._entry(key).info

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames `start` to `stop` of a clip, as in a slice.

        Returns:
            uint8 (T, H, W), writable, the caller's own.

        Raises:
            KeyError: no such clip.
            SpeechattnError: its bytes are damaged.
        """
        entry = self._entry(key)
        info = entry.info
        start, stop, _ = slice(start, stop).indices(info.frames)
        if stop <= start:
            return np.zeros((0, info.height, info.width), dtype=np.uint8)
        first, last = start // _BLOCK, (stop - 1) // _BLOCK
        offset = entry.offset + sum(entry.blocks[:first])
        sizes = entry.blocks[first : last + 1]
        # pread keeps no position, so forked workers can share the file.
        data = os.pread(self._file(entry.shard), sum(sizes), offset)
        parts, position = [], 0
        try:
            for size in sizes:
                block = data[position : position + size]
                parts.append(_decode(block, info.height, info.width))
                position += size
            frames = parts[0] if len(parts) == 1 else np.concatenate(parts)
            if len(frames) < stop - first * _BLOCK:
                raise ValueError("too few frames")
        except (zlib.error, ValueError) as error:
            raise SpeechattnError(
                f"{self.folder}: clip {key} is damaged in {_shard_name(entry.shard)} ({error}); "
                "delete the store and run the ROI stage again"
            ) from error
        return frames[start - first * _BLOCK : stop - first * _BLOCK]

    def close(self) -> None:
        """Closes the shards; the next read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        if getattr(self, "_files", None):
            self.close()

    def _entry(self, key: str) -> _Entry:
        try:
            return self._entries[key]
        except KeyError:
            raise KeyError(f"no crops of {key!r} in {self.folder}") from None

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            self._files[shard] = os.open(self.folder / _shard_name(shard), os.O_RDONLY)
        return self._files[shard]


class CropWriter:
    """Adds crops to a store, new or begun; one writer at a time.

    What an interrupted writer left half-written is cut off. Use it as a context manager, or call
    `close`.

    Args:
        folder: made if missing.

    Raises:
        SpeechattnError: another process is writing to the store.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._index = open(self.folder / _INDEX, "ab")
        try:
            fcntl.flock(self._index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._index.close()
            raise SpeechattnError(f"{folder}: another process is writing here") from error
        entries, length = _read_index(self.folder)
        self._index.truncate(length)
        self._keys = set(entries)
        last = max(entries.values(), key=lambda e: (e.shard, e.offset), default=None)
        self._shard = last.shard if last else 0
        self._open_shard(last.offset + sum(last.blocks) if last else 0)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: str, frames: np.ndarray, fps: float, detected: float = 1.0) -> None:
        """Stores the crops of a clip.

        Args:
            key: new in this store.
            frames: uint8 (T, H, W).
            fps: frames per second.
            detected: see `CropInfo`.

        Raises:
            ValueError: the key is there already, or `frames` is not as said.
        """
        self.add_encoded(key, encode(frames, fps, detected))

    def add_encoded(self, key: str, crop: EncodedCrop) -> None:
        """Stores what `encode` made."""
        if key in self._keys:
            raise ValueError(f"{key!r} is in {self.folder} already")
        if self._offset >= _SHARD_BYTES:
            self._file.close()
            self._shard += 1
            self._open_shard(0)
        for block in crop.blocks:
            self._file.write(block)
        self._file.flush()  # before the index names it
        info, sizes = crop.info, [len(block) for block in crop.blocks]
        record = {
            "key": key,
            "frames": info.frames,
            "height": info.height,
            "width": info.width,
            "fps": info.fps,
            "detected": round(info.detected, 4),
            "shard": self._shard,
            "offset": self._offset,
            "blocks": sizes,
        }
        self._index.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._index.flush()
        self._offset += sum(sizes)
        self._keys.add(key)

    def close(self) -> None:
        """Writes everything out to disk and lets the store go."""
        for file in (self._file, self._index):
            if not file.closed:
                file.flush()
                os.fsync(file.fileno())
                file.close()

    def __enter__(self) -> "CropWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_shard(self, offset: int) -> None:
        self._file = open(self.folder / _shard_name(self._shard), "ab")
        self._file.truncate(offset)
        self._offset = offset


def _shard_name(shard: int) -> str:
    return f"crops-{shard:05d}.bin"


def _read_index(folder: Path) -> tuple[dict[str, _Entry], int]:
    """The complete entries, and the length in bytes of the part of the index that holds them."""
    entries: dict[str, _Entry] = {}
    length, sizes = 0, {}
    with open(folder / _INDEX, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
                key = record["key"]
                info = CropInfo(
                    record["frames"],
                    record["height"],
                    record["width"],
                    record["fps"],
                    record["detected"],
                )
                entry = _Entry(info, record["shard"], record["offset"], tuple(record["blocks"]))
            except (ValueError, KeyError, TypeError) as error:
                raise SpeechattnError(
                    f"{folder / _INDEX}: line {number} is damaged ({error}); "
                    "delete the store and run the ROI stage again"
                ) from error
            if entry.shard not in sizes:
                file = folder / _shard_name(entry.shard)
                sizes[entry.shard] = file.stat().st_size if file.is_file() else 0
            # After a power cut the index can be ahead of the blocks: believe the blocks.
            if entry.offset + sum(entry.blocks) > sizes[entry.shard]:
                break
            entries[key] = entry
            length += len(line)
    return entries, length
