"""What the manifests need to know of one media file, and its sound as FLAC where that is needed."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from speechattn.data.video import probe, read_audio
from speechattn.errors import MediaError

SAMPLE_RATE = 16000
_BLOCK = 1 << 16


@dataclass(frozen=True)
class MediaFacts:
    """What a file holds, and where its sound lies.

    Attributes:
        path: the file.
        size: of the file in bytes; with `mtime_ns` it tells when the file changed.
        mtime_ns: time of the last change, nanoseconds.
        audio: file with the sound, one channel: `path` itself or a FLAC made from it.
        sample_rate: of `audio`, Hz.
        num_samples: of `audio`.
        has_audio: False where `audio` is made-up silence.
        video_fps: average rate that the file states, None without video.
        video_frames: number of frames that the file states, None without video.
    """

    path: str
    size: int
    mtime_ns: int
    audio: str
    sample_rate: int
    num_samples: int
    has_audio: bool
    video_fps: float | None
    video_frames: int | None


def is_current(facts: MediaFacts | None, path: Path) -> bool:
    """Whether facts of an earlier run still hold: same file, unchanged, its sound still there."""
    if facts is None or facts.path != str(path) or not path.is_file():
        return False
    status = path.stat()
    unchanged = (status.st_size, status.st_mtime_ns) == (facts.size, facts.mtime_ns)
    return unchanged and Path(facts.audio).is_file()


def read_media(path: Path, flac: Path, verify: bool = True) -> MediaFacts | str:
    """The facts of one file, or the reason why it cannot be used.

    Only what is wrong with the file is a reason; failing to write (a full disk) is raised.

    Args:
        path: audio or video file.
        flac: where its sound goes, unless it is an audio file of one channel.
        verify: decode such an audio file to the end.
    """
    fps = frames = samples = None
    has_audio = True
    try:
        status = path.stat()
        header = _audio_header(path)
        if header is None:
            info = probe(path)
            has_audio = info.has_audio
            if info.has_video:
                fps, frames = info.fps, info.frames
            samples = read_audio(path, SAMPLE_RATE) if has_audio else _silence(path, info.duration)
        elif header.channels > 1:
            samples = read_audio(path, SAMPLE_RATE)
        elif verify:
            _check_size(path, header.extra_info)
            _decode_to_end(path, header.frames)
    except MediaError as error:
        return error.reason
    except (OSError, soundfile.LibsndfileError) as error:
        return str(error)
    if samples is None:
        audio, rate, length = path, header.samplerate, header.frames
    else:
        audio, rate, length = flac, SAMPLE_RATE, len(samples)
    if length == 0:
        return "no sound in it: 0 samples"
    if samples is not None:
        _write_flac(flac, samples)
    return MediaFacts(
        path=str(path),
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        audio=str(audio),
        sample_rate=rate,
        num_samples=length,
        has_audio=has_audio,
        video_fps=fps,
        video_frames=frames,
    )


def _audio_header(path: Path):
    """libsndfile's description of a file that it reads, else None."""
    try:
        return soundfile.info(path, verbose=True)
    except (soundfile.LibsndfileError, RuntimeError):
        return None


def _check_size(path: Path, remarks: str) -> None:
    """libsndfile shortens a cut WAV to what is there and only remarks on it."""
    found = re.search(r"^data\s*: (\d+) \(should be (\d+)\)", remarks, re.MULTILINE)
    # Programs that write to a pipe state a size of 2 or 4 GiB, for want of a better one.
    if found and int(found[2]) < int(found[1]) < 0x7FFFF000:
        raise MediaError(path, f"truncated: {found[2]} of {found[1]} bytes of sound are there")


def _decode_to_end(path: Path, length: int) -> None:
    decoded = 0
    with soundfile.SoundFile(path) as file:
        while block := len(file.read(_BLOCK, dtype="int16")):
            decoded += block
    if decoded != length:
        raise MediaError(path, f"truncated or damaged: {decoded} of {length} samples are there")


def _silence(path: Path, duration: float) -> np.ndarray:
    if duration <= 0:
        raise MediaError(path, "neither sound nor a stated duration")
    return np.zeros(round(duration * SAMPLE_RATE), dtype=np.float32)


def _write_flac(path: Path, samples: np.ndarray) -> None:
    # Scaled here: libsndfile maps 1.0 to 32767, which would not give back what was read.
    integers = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    partial = path.with_name(f".{path.name}.part")
    soundfile.write(partial, integers, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    os.replace(partial, path)
