"""Sound: of files, in pieces or whole, and of arrays.

The memory used to read in pieces does not grow with the length of a file.
"""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import soundfile

from speechattn.data.media.container import (
    audio_stream,
    check_bytes,
    decode,
    open_media,
    video_stream,
)
from speechattn.errors import MediaError

# Samples that are read at a time.
_BLOCK = 1 << 16


def read_audio(path: str | Path, sample_rate: int = 16000) -> np.ndarray:
    """Read all of `stream_audio`, float32 (N,) in [-1, 1]."""
    return np.concatenate(list(stream_audio(path, sample_rate)))


def stream_audio(path: str | Path, sample_rate: int = 16000) -> Iterator[np.ndarray]:
    """Read the sound of an audio or a video file in pieces, one channel at `sample_rate` Hz.

    Audio files are read by libsndfile, everything else by FFmpeg. In a video, sample 0 is the
    moment of the first picture: sound that starts later is preceded by silence, sound that starts
    earlier is cut. Sound of videos and resampled sound is rounded to 16 bits, so that writing it
    to FLAC and reading it back changes nothing. Several channels are mixed down.

    Yields:
        float32 (n,) in [-1, 1], n at least 1 and at most a few seconds' worth.

    Raises:
        MediaError: missing, empty, truncated, not media, or without sound; damage in mid-stream
            raises after the pieces before it.
    """
    check_bytes(path)
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
    with open_media(path) as container:
        stream = audio_stream(container)
        if stream is None:
            raise MediaError(path, "no sound in it")
        video = video_stream(container)
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
    """Yield resampled sound, and with each piece the second at which all of it starts."""
    resampler, start = _resampler(sample_rate), None
    for frame in decode(path, container, stream):
        if start is None:
            start = float(frame.pts * frame.time_base) if frame.pts is not None else 0.0
        frame.pts = None  # gaps are not filled; only the start is aligned
        for piece in _pieces(resampler, frame):
            yield piece, start
    if start is not None:
        for piece in _pieces(resampler, None):
            yield piece, start


def _pieces(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
    arrays = (resampled.to_ndarray()[0] for resampled in resampler.resample(frame))
    yield from (samples.astype(np.float32) / 32768 for samples in arrays if len(samples))


def resample(samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Resample sound (N,) float32 from `rate` to `sample_rate` Hz, in floating point."""
    if rate == sample_rate:
        return samples
    resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate = rate
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([f.to_ndarray()[0] for f in frames]).astype(np.float32, copy=False)


def _resampler(sample_rate: int) -> av.AudioResampler:
    return av.AudioResampler(format="s16", layout="mono", rate=sample_rate)


def fit_audio(audio: np.ndarray, samples: int) -> np.ndarray:
    """Cut sound, or lengthen it with silence, to `samples`: lips and voice then end together."""
    return audio[:samples] if len(audio) >= samples else np.pad(audio, (0, samples - len(audio)))
