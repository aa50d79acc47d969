"""What a stream is given: pieces of sound and of mouth crops, from a program, a file or a pipe."""

import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from speechattn.data.augment import CenterCrop
from speechattn.data.crops.ready import fit
from speechattn.data.media.streams import stream_audio
from speechattn.errors import MediaError
from speechattn.transcribe.long_files import stream_mouth

if TYPE_CHECKING:
    from speechattn.transcribe.transcriber import Transcriber

NAME = "stream"  # what errors call it

Array = np.ndarray | Tensor
Piece = Array | tuple[Array | None, Array | None]


def split(piece: Piece, transcriber: "Transcriber") -> Iterator[tuple[str, Tensor]]:
    """The sound and the crops of a piece, as the model takes them: (n,), and (n, 1, H, W).

    Args:
        piece: see `Transcriber.stream`.
        transcriber: whose model it is for.

    Raises:
        MediaError: the piece is nothing that the model takes.
    """
    for part in piece if isinstance(piece, tuple) else (piece,):
        if part is None:
            continue
        part = np.asarray(part)
        name = "video" if part.dtype == np.uint8 else "audio"
        if name not in transcriber.model.modalities:
            takes = "mouth crops, uint8 (n, H, H)" if name == "audio" else "sound, float (n,)"
            raise MediaError(NAME, f"a piece of {part.dtype} is {name}; this model takes {takes}")
        yield name, (_video(part, transcriber) if name == "video" else _audio(part))


def _audio(part: np.ndarray) -> Tensor:
    if part.ndim != 1 or (part.dtype.kind != "f" and part.dtype != np.int16):
        raise MediaError(
            NAME, f"a piece of sound is float (n,) or int16 (n,), not {part.dtype} {part.shape}"
        )
    scale = 1.0 if part.dtype.kind == "f" else 2.0**-15
    sound = torch.tensor(part, dtype=torch.float32) * scale  # a copy: callers fill buffers anew
    if not sound.isfinite().all():
        raise MediaError(NAME, "a piece of sound has samples that are no numbers")
    return sound


def _video(part: np.ndarray, transcriber: "Transcriber") -> Tensor:
    frames = part[None] if part.ndim == 2 else part
    if frames.ndim != 3 or frames.shape[1] != frames.shape[2]:
        raise MediaError(
            NAME, f"mouth crops are uint8 (n, H, H) or (H, H), square and grey, not {part.shape}"
        )
    if len(frames):
        frames = fit(frames, transcriber.cropper.options, NAME)
    frames = CenterCrop(transcriber.model.crop_size)(frames)
    return torch.tensor(frames)[:, None]  # (n, 1, H, W)


def pieces_of_file(
    transcriber: "Transcriber", path: str | Path, seconds: float = 0.1
) -> Iterator[Piece]:
    """A file as a microphone and a camera would give it.

    A face video is followed to its end first, which tells who the speaker is.

    Args:
        transcriber: whose model it is for.
        path: as of `Transcriber.transcribe`.
        seconds: a piece.

    Raises:
        MediaError: the file has not what the model needs.
    """
    model = transcriber.model
    lanes = {}
    if "audio" in model.modalities:
        pieces = stream_audio(path, model.sample_rate)
        lanes["audio"] = regular(pieces, seconds * model.sample_rate)
    if "video" in model.modalities:
        lanes["video"] = regular(stream_mouth(transcriber, path), seconds * model.video_fps)
    yield from zip_longest(*lanes.values())


def slowly(pieces: Iterator[Piece], seconds: float = 0.1) -> Iterator[Piece]:
    """Pieces of so many seconds, none before it would have been recorded."""
    begun = time.monotonic()
    for number, piece in enumerate(pieces, 1):
        time.sleep(max(begun + number * seconds - time.monotonic(), 0.0))
        yield piece


def regular(pieces: Iterator[np.ndarray], size: float) -> Iterator[np.ndarray]:
    """The same in pieces of equal size, which need not be whole: (n, ...) each."""
    held, given = None, 0.0
    for piece in pieces:
        held = piece if held is None else np.concatenate([held, piece])
        while len(held) >= (count := int(given + size) - int(given)):
            yield held[:count]
            held, given = held[count:], given + size
    if held is not None and len(held):
        yield held


def pieces_of_pipe(file: BinaryIO, sample_rate: int, seconds: float = 0.1) -> Iterator[np.ndarray]:
    """Raw sound as it comes: 16 bits a sample, little-endian, one channel, at the model's rate.

    Args:
        file: that is read.
        sample_rate: Hz.
        seconds: a piece at most.
    """
    rest = b""
    while data := file.read1(2 * max(int(seconds * sample_rate), 1)):
        data = rest + data
        whole = len(data) // 2 * 2
        rest = data[whole:]
        yield np.frombuffer(data[:whole], "<i2")
