"""MediaReader: from a path, an array, bytes or a live source to what a model takes."""

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import BinaryIO, Protocol, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor

from speechattn.data.augment import CenterCrop
from speechattn.data.batches.batch import Item
from speechattn.data.crops.ready import READY_CROP, fit_crops, is_crop_array, open_crops, read_crops
from speechattn.data.crops.roi import MouthCropper, RoiOptions
from speechattn.data.media import fit_audio, iter_video, probe, resample, stream_audio
from speechattn.errors import MediaError

Array = np.ndarray | Tensor


class OpenFile(Protocol):
    """Anything that reads bytes: a file, an upload, what `NamedTemporaryFile` returns."""

    def read(self) -> bytes:
        """Return the rest of the content."""


# A path, sound or mouth crops as an array, both as a pair, a media file's bytes or the open file.
Source = str | Path | Array | tuple[Array | None, Array | None] | bytes | OpenFile
# A live source's next piece: sound, mouth crops, or a pair of which one may be None.
Piece = Array | tuple[Array | None, Array | None]

CROP_BLOCK = 100  # mouth crops that are read at a time


class MediaSource(Protocol):
    """An opened source.

    Attributes:
        name: what results and errors call it.
    """

    @property
    def name(self) -> str: ...

    def duration(self) -> float:
        """Return its seconds as it states them, 0 where it does not."""

    def sound(self) -> Iterator[np.ndarray]:
        """Read sound in pieces, float32 (n,) at the model's rate."""

    def crops(self) -> Iterator[np.ndarray]:
        """Read mouth crops in pieces, uint8 (n, H, H), as the ROI stage makes them."""


class MediaReader:
    """Reads the sound and the mouth crops that a model takes.

    Args:
        modalities: 'audio', 'video' or both.
        sample_rate: of the sound, in Hz.
        video_fps: pictures a second.
        crop_size: side of the square that the model takes of a mouth crop, in pixels.
        cropper: cuts mouths out of face videos.
    """

    def __init__(
        self,
        modalities: Iterable[str],
        *,
        sample_rate: int,
        video_fps: float,
        crop_size: int,
        cropper: MouthCropper,
    ):
        self.uses_audio, self.uses_video = "audio" in modalities, "video" in modalities
        self.sample_rate, self.video_fps = sample_rate, video_fps
        self.cropper, self.center = cropper, CenterCrop(crop_size)

    @contextmanager
    def open(
        self, source: Source, *, sample_rate: int | None = None, name: str = "input"
    ) -> Iterator[MediaSource]:
        """Open a source; a `MediaError` from inside names it.

        Args:
            source: a face video, mouth crops (a square video no larger than 1.5 times the model's
                crop, or a .npy array (T, H, H) uint8 at the model's frame rate) or a sound file,
                by its path, its bytes or open; or arrays: sound, float in [-1, 1] or int16 (N,)
                or (channels, N); crops, uint8 (T, H, H); a pair (sound, crops).
            sample_rate: of a sound array, in Hz; None for the model's.
            name: of a source that has no path.

        Raises:
            MediaError: arrays that are neither sound nor mouth crops, or lack what the model takes.
        """
        if isinstance(source, str | Path):
            yield _File(str(source), source, self)
        elif is_media_content(source):
            name = str(getattr(source, "name", name))
            with _spooled(_content(source, name)) as path:
                try:
                    yield _File(name, path, self)
                except MediaError as error:
                    raise type(error)(name, error.reason) from error
        else:
            yield self._of_arrays(cast(Piece, source), sample_rate, name)

    def read(self, media: MediaSource) -> Item:
        """Read a source as a whole.

        Raises:
            MediaError: it lacks what the model takes, or cannot be read.
        """
        video = np.concatenate(list(media.crops())) if self.uses_video else None
        audio = np.concatenate(list(media.sound())) if self.uses_audio else None
        if video is not None:
            if audio is not None:
                audio = fit_audio(audio, round(len(video) / self.video_fps * self.sample_rate))
            video = self.center(video)
        return Item(media.name, "", [], audio, video)

    def pieces(self, source: Source, seconds: float = 0.1) -> Iterator[Piece]:
        """Read a source as a microphone and a camera would give it, in pieces of `seconds`.

        Raises:
            MediaError: it lacks what the model takes.
        """
        with self.open(source) as media:
            streams = []
            if self.uses_audio:
                streams.append(regular(media.sound(), seconds * self.sample_rate))
            if self.uses_video:
                streams.append(regular(media.crops(), seconds * self.video_fps))
            yield from zip_longest(*streams)

    def split(self, piece: Piece, name: str = "stream") -> Iterator[tuple[str, Tensor]]:
        """Yield the sound (n,) and the crops (n, 1, H, W) of a live piece, as the model takes them.

        Args:
            piece: sound, float or int16 (n,), or crops, uint8 (n, H, H) or (H, H); or a pair.
            name: what errors call the source.

        Raises:
            MediaError: it is nothing that the model takes.
        """
        for modality, part in self._parts(piece, name):
            if modality == "audio":
                yield modality, torch.tensor(as_sound(part, name))  # a copy: buffers are used again
            else:
                crops = self.center(as_crops(part, self.cropper.options, name))
                yield modality, torch.tensor(crops)[:, None]

    def _of_arrays(self, source: Piece, sample_rate: int | None, name: str) -> "_Arrays":
        arrays: dict[str, np.ndarray] = {}
        for modality, part in self._parts(source, name):
            if modality == "audio":
                rate = sample_rate or self.sample_rate
                arrays[modality] = resample(as_sound(part, name), rate, self.sample_rate)
            else:
                arrays[modality] = as_crops(part, self.cropper.options, name)
        needs = (("audio", self.uses_audio, "sound"), ("video", self.uses_video, "mouth crops"))
        for modality, needed, what in needs:
            if needed and not len(arrays.get(modality, ())):
                raise MediaError(name, f"no {what} in it, and this model takes {what}")
        return _Arrays(name, self, arrays)

    def _parts(self, piece: Piece, name: str) -> Iterator[tuple[str, np.ndarray]]:
        for part in piece if isinstance(piece, tuple) else (piece,):
            if part is None:
                continue
            # a tensor may require gradients or lie on a GPU
            part = part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
            modality = "video" if part.dtype == np.uint8 else "audio"
            if not (self.uses_video if modality == "video" else self.uses_audio):
                takes = "mouth crops, uint8 (n, H, H)" if self.uses_video else "sound, float (n,)"
                reason = f"an array of {part.dtype} is {modality}; this model takes {takes}"
                raise MediaError(name, reason)
            yield modality, part


@dataclass(frozen=True)
class _File:
    name: str
    path: str | Path
    reader: MediaReader

    def duration(self) -> float:
        try:
            if is_crop_array(self.path):
                return len(open_crops(self.path)) / self.reader.video_fps
            return probe(self.path).duration
        except (MediaError, OSError, ValueError, EOFError):
            return 0.0  # reading it tells why

    def sound(self) -> Iterator[np.ndarray]:
        return stream_audio(self.path, self.reader.sample_rate)

    def crops(self) -> Iterator[np.ndarray]:
        # Ready crops are read as they are asked for. A face video is followed to its end first,
        # which tells who the speaker is; until then its crops wait on disk.
        path, options = self.path, self.reader.cropper.options
        if is_crop_array(path):
            yield from read_crops(path, options, CROP_BLOCK)
            return
        info = probe(path)
        if not info.has_video:
            raise MediaError(path, "no video stream, and this model reads lips")
        if not info.width == info.height <= READY_CROP * options.size:
            yield from self.reader.cropper.stream(path)
            return
        frames = iter_video(path, options.fps)
        while some := [frame.grey() for frame in islice(frames, CROP_BLOCK)]:
            yield fit_crops(np.stack(some), options, path)


@dataclass(frozen=True)
class _Arrays:
    name: str
    reader: MediaReader
    arrays: dict[str, np.ndarray]

    def duration(self) -> float:
        if "video" in self.arrays:
            return len(self.arrays["video"]) / self.reader.video_fps
        return len(self.arrays["audio"]) / self.reader.sample_rate

    def sound(self) -> Iterator[np.ndarray]:
        yield self.arrays["audio"]

    def crops(self) -> Iterator[np.ndarray]:
        yield self.arrays["video"]


def is_media_content(source: Source) -> TypeGuard[bytes | bytearray | OpenFile]:
    """Return whether a source is a media file's bytes or an open file, no path and no array."""
    # by its method: wrappers such as NamedTemporaryFile's are of no class of `io`
    return isinstance(source, bytes | bytearray) or hasattr(source, "read")


def _content(source: bytes | bytearray | OpenFile, name: str) -> bytes | bytearray:
    content = source if isinstance(source, bytes | bytearray) else source.read()
    if isinstance(content, str):
        raise MediaError(name, "opened as text; open it in binary mode, 'rb'")
    return content


@contextmanager
def _spooled(content: bytes | bytearray) -> Iterator[str]:
    """Yield the path of a temporary file with this content."""
    handle, path = tempfile.mkstemp(suffix=".npy" if content[:6] == b"\x93NUMPY" else "")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        yield path
    finally:
        os.unlink(path)


def as_sound(part: np.ndarray, name: str) -> np.ndarray:
    """Return sound (n,) or (channels, n), float or int16, as float32 (n,).

    Raises:
        MediaError: it is of another kind, or has samples that are no numbers.
    """
    if part.ndim not in (1, 2) or (part.dtype.kind != "f" and part.dtype != np.int16):
        raise MediaError(
            name, f"sound is float or int16, (n,) or (channels, n), not {part.dtype} {part.shape}"
        )
    if part.ndim == 2 and part.shape[0] > part.shape[1] > 0:
        raise MediaError(name, f"sound is (channels, n), not {part.shape}: transpose it")
    scale = 1.0 if part.dtype.kind == "f" else 2.0**-15
    sound = part.astype(np.float32) * np.float32(scale)
    if not np.isfinite(sound).all():
        raise MediaError(name, "sound with samples that are no numbers")
    return sound.mean(axis=0, dtype=np.float32) if sound.ndim == 2 else sound


def as_crops(part: np.ndarray, options: RoiOptions, name: str) -> np.ndarray:
    """Return mouth crops, uint8 (n, H, H) or (H, H), at the side that the ROI stage gives them.

    Raises:
        MediaError: they are not square, or too small.
    """
    frames = part[None] if part.ndim == 2 else part
    if frames.ndim != 3 or frames.shape[1] != frames.shape[2]:
        wanted = "mouth crops are square and grey, (n, H, H) or (H, H)"
        raise MediaError(name, f"{wanted}, not {part.shape}")
    return fit_crops(frames, options, name) if len(frames) else frames


def regular(pieces: Iterable[np.ndarray], size: float) -> Iterator[np.ndarray]:
    """Yield the same in pieces of equal size, which need not be whole: (n, ...) each."""
    held, done = None, 0.0
    for piece in pieces:
        held = piece if held is None else np.concatenate([held, piece])
        while len(held) >= (count := int(done + size) - int(done)):
            yield held[:count]
            held, done = held[count:], done + size
    if held is not None and len(held):
        yield held


def in_real_time(pieces: Iterable[Piece], seconds: float = 0.1) -> Iterator[Piece]:
    """Yield pieces of so many seconds, none before it would have been recorded."""
    begun = time.monotonic()
    for number, piece in enumerate(pieces, 1):
        time.sleep(max(begun + number * seconds - time.monotonic(), 0.0))
        yield piece


def pieces_of_pipe(file: BinaryIO, sample_rate: int, seconds: float = 0.1) -> Iterator[np.ndarray]:
    """Read raw sound as it comes, pieces of `seconds` at most: 16 bits, little-endian, one channel.

    `sample_rate` is in Hz.
    """
    rest = b""
    read = getattr(file, "read1", file.read)  # as much as is there
    while data := read(2 * max(int(seconds * sample_rate), 1)):
        data = rest + data
        whole = len(data) // 2 * 2
        rest = data[whole:]
        yield np.frombuffer(data[:whole], "<i2")
