"""Facts of one media file for the manifests, and its sound as FLAC where that is needed."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from speechattn.data.media import probe, read_audio
from speechattn.errors import MediaError
from speechattn.files import replacing

log = logging.getLogger(__name__)

SAMPLE_RATE = 16000
# Picture and sound of one clip differ by less than one of these: seconds, ratio.
MAX_APART = 0.5
MAX_RATIO = 1.25
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """Length, rates and sound of a file."""

    path: str  # the file
    size: int  # of the file in bytes; with `mtime_ns` it tells when the file changed
    mtime_ns: int  # time of the last change, nanoseconds
    audio: str  # file with the sound, one channel: `path` itself or a FLAC made from it
    sample_rate: int  # of `audio`, Hz
    num_samples: int  # of `audio`
    has_audio: bool  # False where `audio` is made-up silence
    video_fps: float | None  # average rate that the file states, None without video
    video_frames: int | None  # number of frames that the file states, None without video
    # file that the sound was looked for in, where the corpus keeps it beside the video
    sound: str | None = None
    sound_mtime_ns: int | None = None  # time of its last change, nanoseconds
    remark: str = ""  # why that file was not used; "" if it was


def is_current(facts: MediaFacts | None, path: Path, sound: Path | None = None) -> bool:
    """Return whether facts of an earlier run still hold: same files, unchanged, sound there."""
    if facts is None or (facts.path, facts.sound) != (str(path), sound and str(sound)):
        return False
    try:
        status = os.stat(path)
        changed = None if sound is None else os.stat(sound).st_mtime_ns
    except OSError:
        return False
    unchanged = (status.st_size, status.st_mtime_ns) == (facts.size, facts.mtime_ns)
    return unchanged and changed == facts.sound_mtime_ns and os.path.isfile(facts.audio)


def read_media(
    path: Path, flac: Path, verify: bool = True, sound: Path | None = None
) -> MediaFacts | str:
    """Read the facts of one file, or return the reason why it cannot be used.

    Only what is wrong with the file is a reason; failing to write (a full disk) is raised. Sound
    goes to `flac`, unless it lies in an audio file of one channel, which `verify` decodes to the
    end. Where `sound`, a file beside the video, cannot be used, the video's own sound or silence
    takes its place, and `remark` tells why.
    """
    fps, frames, audio, remark = None, None, None, ""
    try:
        status = path.stat()
        info = None if _audio_header(path) is not None else probe(path)
        if info is not None and info.has_video:
            fps, frames = info.fps, info.frames
        if sound is not None:
            if not frames or not fps:
                return "no picture in it"
            try:
                audio = _read_sound(sound, verify)
            except Exception as error:
                remark = f"without {sound.name}: {_reason(error)}"
            if audio is not None and (reason := _compare(frames / fps, audio, sound)):
                return reason
        if audio is None and (info is None or info.has_audio):
            audio = _read_sound(path, verify)
        if audio is None:
            silence = _silence(path, info.duration)
            audio = _Sound(path, SAMPLE_RATE, len(silence), silence, False)
    except Exception as error:
        return _reason(error)
    if audio.length == 0:
        return "no sound in it: 0 samples"
    if audio.samples is not None:
        _write_flac(flac, audio.samples)
    return MediaFacts(
        path=str(path),
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        audio=str(audio.path if audio.samples is None else flac),
        sample_rate=audio.rate,
        num_samples=audio.length,
        has_audio=audio.real,
        video_fps=fps,
        video_frames=frames,
        sound=None if sound is None else str(sound),
        sound_mtime_ns=None if sound is None else os.stat(sound).st_mtime_ns,
        remark=remark,
    )


def _reason(error: Exception) -> str:
    """Describe what a file made its reader raise: one file of many must not end hours of work."""
    if isinstance(error, MediaError):
        return error.reason
    if isinstance(error, OSError | soundfile.LibsndfileError):
        return str(error)
    log.debug("", exc_info=error)
    return f"cannot be read: {type(error).__name__}: {error}"


class _Sound(NamedTuple):
    path: Path
    rate: int
    length: int
    samples: np.ndarray | None  # None: the file can be pointed at
    real: bool = True


def _read_sound(path: Path, verify: bool) -> _Sound:
    header = _audio_header(path)
    if header is None or header.channels > 1:
        samples = read_audio(path, SAMPLE_RATE)
        return _Sound(path, SAMPLE_RATE, len(samples), samples)
    if verify:
        _check_size(path, header.extra_info)
        _decode_to_end(path, header.frames)
    return _Sound(path, header.samplerate, header.frames, None)


def _compare(seconds: float, audio: _Sound, sound: Path) -> str:
    """Return the reason why picture and sound cannot be of one clip, or ""."""
    audio_seconds = audio.length / audio.rate
    short, long = sorted((seconds, audio_seconds))
    if long - short <= MAX_APART or long <= MAX_RATIO * short:
        return ""
    lengths = f"{seconds:.2f} s of picture and {audio_seconds:.2f} s of sound in {sound.name}"
    return f"{lengths}: a wrong frame rate, a cut file or another clip's sound"


def _audio_header(path: Path):
    """Return libsndfile's description of a file that it reads, else None."""
    try:
        return soundfile.info(path, verbose=True)
    except (soundfile.LibsndfileError, RuntimeError):
        return None


def _check_size(path: Path, remarks: str) -> None:
    """Raise for a WAV that was cut short, on which libsndfile only remarks."""
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
    with replacing(path) as part:
        soundfile.write(part, integers, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
