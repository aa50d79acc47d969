"""Media files in, a piece at a time: what `video` reads, in memory that a long file cannot fill."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import soundfile

from speechattn.data.media.container import (
    _audio_stream,
    _check_bytes,
    _decode,
    _open,
    _resampler,
    _video_stream,
)
from speechattn.errors import MediaError

# Samples that are read at a time.
_BLOCK = 1 << 16


def stream_audio(path: str | Path, sample_rate: int = 16000) -> Iterator[np.ndarray]:
    """The samples of `read_audio`, the same to the last bit, in pieces.

    Args:
        path: an audio or a video file.
        sample_rate: Hz wanted.

    Yields:
        float32 (n,) in [-1, 1], n at least 1 and at most a few seconds' worth.

    Raises:
        MediaError: as of `read_audio`; damage in mid-stream raises after the pieces before it.
    """
    _check_bytes(path)
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, RuntimeError):
        yield from _stream_container(path, sample_rate)
        return
    with file:
        yield from _stream_sound_file(path, file, sample_rate)


def _stream_sound_file(
    path: str | Path, file: soundfile.SoundFile, sample_rate: int
) -> Iterator[np.ndarray]:
    resampler = None if file.samplerate == sample_rate else _resampler(sample_rate)
    read = 0
    while True:
        try:
            block = file.read(_BLOCK, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            seconds = read / file.samplerate
            raise MediaError(path, f"damaged after {seconds:.1f} s of sound: {error}") from error
        if not len(block):
            break
        read += len(block)
        mono = block.mean(axis=1, dtype=np.float32)
        if resampler is None:
            yield mono
            continue
        frame = av.AudioFrame.from_ndarray(mono[None], format="flt", layout="mono")
        frame.sample_rate = file.samplerate
        yield from _pieces(resampler, frame)
    if read == 0:
        raise MediaError(path, "no sound in it: 0 samples")
    if resampler is not None:
        yield from _pieces(resampler, None)


def _stream_container(path: str | Path, sample_rate: int) -> Iterator[np.ndarray]:
    with _open(path) as container:
        stream = _audio_stream(container)
        if stream is None:
            raise MediaError(path, "no sound in it")
        video = _video_stream(container)
        skip = None  # samples before the first picture, which are left out
        for piece, start in _timed_pieces(path, container, stream, sample_rate):
            if skip is None:
                offset = 0
                if video is not None and video.start_time is not None:
                    first = float(video.start_time * video.time_base)
                    offset = round((start - first) * sample_rate)
                for position in range(0, offset, _BLOCK):
                    yield np.zeros(min(_BLOCK, offset - position), dtype=np.float32)
                skip = max(0, -offset)
            if len(piece) > skip:
                yield piece[skip:]
            elif len(piece):
                skip -= len(piece)
                continue
            skip = 0
        if skip is None:
            raise MediaError(path, "no sound in it: 0 samples")
        if skip > 0:
            raise MediaError(path, "its sound ends before the first picture")


def _timed_pieces(path, container, stream, sample_rate: int) -> Iterator[tuple[np.ndarray, float]]:
    """Resampled sound, and with each piece the second at which all of it starts."""
    resampler, start = _resampler(sample_rate), None
    for frame in _decode(path, container, stream):
        if start is None:
            start = float(frame.pts * frame.time_base) if frame.pts is not None else 0.0
        frame.pts = None  # gaps are not filled; only the start is aligned
        for piece in _pieces(resampler, frame):
            yield piece, start
    if start is not None:
        for piece in _pieces(resampler, None):
            yield piece, start


def _pieces(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
    for resampled in resampler.resample(frame):
        samples = resampled.to_ndarray()[0]
        if len(samples):
            yield samples.astype(np.float32) / 32768


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
        """(stop - start, ...), fewer where the stream ends before; a copy.

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
