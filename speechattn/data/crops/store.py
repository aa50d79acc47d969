"""The crop store: grey crops of many clips in a few large files, read without a video decoder.

Crops are kept without loss, so that training sees the bytes that `MouthCropper` made and that
`Transcriber` will see again. A clip is cut into blocks of 25 frames; in a block every frame is
replaced by its difference to the one before (the first: row by row), and the differences, mostly
around zero, are entropy coded by Zstandard. Measured on GRID (`benchmarks/crop_store.py`), a clip
of 75 frames of 96x96 on one core: 242 kB and 1.6 ms to read.
Raw bytes take 691 kB and 0.1 ms (Lhotse Shar 694 kB and 0.9 ms), but a 400-hour corpus then takes
360 GB and is read from disk again every epoch; npz 398 kB and 3 ms; PNG frames 293 kB and 8 ms;
H.264 without loss 221 kB and 8 ms, FFV1 228 kB and 14 ms. Nothing lossless is both smaller and
faster. JPEG frames at quality 95 are (187 kB, 2.3 ms), with loss: a fifth saved, at the price of
applying the same loss in `Transcriber`.

On disk a store is what `blobs` describes: `crops-00000.bin`, ... and `index.jsonl`, in the folder
or in parts of it that the jobs of a cluster wrote.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError

from speechattn.data.crops.blobs import BlobStore, BlobWriter, Layout
from speechattn.errors import SpeechattnError

_BLOCK = 25  # frames; a shorter read decodes only the blocks that it touches
_NUMBERS = ("frames", "height", "width", "fps", "detected")
CROPS = Layout("index.jsonl", "crops", _NUMBERS, "crop store")


@dataclass(frozen=True)
class CropInfo:
    """Size, rate and origin of one clip."""

    frames: int  # T
    height: int  # pixels
    width: int  # pixels
    fps: float  # frames per second
    detected: float = 1.0  # fraction of the pictures searched in which the face was found
    note: str = ""  # what a person should know about the clip; empty for most


@dataclass(frozen=True)
class EncodedCrop:
    """A clip as it is stored; made by `encode`, in a worker if need be."""

    info: CropInfo
    blocks: tuple[bytes, ...]


def encode(frames: np.ndarray, fps: float, detected: float = 1.0, note: str = "") -> EncodedCrop:
    """Pack a clip of uint8 (T, H, W), T at least 1; see `CropInfo` for the rest."""
    if frames.dtype != np.uint8 or frames.ndim != 3 or 0 in frames.shape:
        raise ValueError(f"crops must be uint8 (T, H, W), not {frames.dtype} {frames.shape}")
    blocks = []
    for start in range(0, len(frames), _BLOCK):
        block = frames[start : start + _BLOCK]
        delta = block.copy()
        delta[1:] -= block[:-1]  # modulo 256
        delta[0, 1:] -= block[0, :-1]
        # Higher levels search for matches, of which camera noise leaves none.
        packer = ZstdCompressor(level=1, write_checksum=True)
        blocks.append(packer.compress(delta.tobytes()))
    count, height, width = frames.shape
    info = CropInfo(count, height, width, float(fps), float(detected), note)
    return EncodedCrop(info, tuple(blocks))


def _decode(block: bytes, height: int, width: int) -> np.ndarray:
    """Decode a block to uint8 (frames of the block, H, W)."""
    # bytearray: numpy may then write into it.
    data = bytearray(ZstdDecompressor().decompress(block))
    out = np.frombuffer(data, dtype=np.uint8).reshape(-1, height, width)
    np.add.accumulate(out[0], axis=0, dtype=np.uint8, out=out[0])
    for i in range(1, len(out)):
        out[i] += out[i - 1]
    return out


class CropStore(BlobStore):
    """Reads the crops in a folder; see `BlobStore`."""

    def __init__(self, folder: str | Path):
        super().__init__(folder, CROPS)

    def keys(self) -> list[str]:
        """Return the keys in the order in which they were added."""
        return list(self)

    def info(self, key: str) -> CropInfo:
        """Return the size and rate of a clip; raise a KeyError if there is none."""
        frames, height, width, fps, detected = (self.number(key, name) for name in CROPS.numbers)
        return CropInfo(int(frames), int(height), int(width), fps, detected, self.note(key))

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read frames `start` to `stop` of a clip, as in a slice.

        Returns:
            uint8 (T, H, W), writable, the caller's own.

        Raises:
            KeyError: no such clip.
            SpeechattnError: its bytes are damaged.
        """
        info = self.info(key)
        start, stop, _ = slice(start, stop).indices(info.frames)
        if stop <= start:
            return np.zeros((0, info.height, info.width), dtype=np.uint8)
        first, last = start // _BLOCK, (stop - 1) // _BLOCK
        try:
            blocks = self.blocks(key, first, last + 1)
            parts = [_decode(block, info.height, info.width) for block in blocks]
            frames = parts[0] if len(parts) == 1 else np.concatenate(parts)
            if len(frames) < stop - first * _BLOCK:
                raise ValueError("too few frames")
        except (ZstdError, ValueError) as error:
            raise SpeechattnError(
                f"{self.folder}: clip {key} is damaged in {self.file(key).name} ({error}); "
                "delete the store and run the ROI stage again"
            ) from error
        return frames[start - first * _BLOCK : stop - first * _BLOCK]


class CropWriter(BlobWriter):
    """Adds crops to the store in a folder; see `BlobWriter`."""

    def __init__(self, folder: str | Path):
        super().__init__(folder, CROPS)

    def add(self, key: str, frames: np.ndarray, fps: float, detected: float = 1.0) -> None:
        """Store the crops of a clip.

        Raises:
            ValueError: the key is there already, or `frames` is not uint8 (T, H, W).
        """
        self.add_encoded(key, encode(frames, fps, detected))

    def add_encoded(self, key: str, crop: EncodedCrop) -> None:
        """Store a clip that `encode` packed."""
        numbers = {name: getattr(crop.info, name) for name in CROPS.numbers}
        numbers["detected"] = round(numbers["detected"], 4)
        self.add_blocks(key, crop.blocks, numbers, note=crop.info.note)
