"""Media files in: what a file holds, its frames at a stated rate, its sound.

Everything goes through PyAV (FFmpeg inside a wheel). Three things that published lip reading code
assumes are read from the file here instead: the frame rate (frames are picked by time stamp, so
25, 29.97, 50 and variable rates all come out at the rate that was asked for), the rotation flag
that telephones set, and the moment at which sound starts relative to the first picture.

Every unusable file raises `MediaError`, whose text names the file and what is wrong with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from speechattn.errors import MediaError

# A time stamp that jumps this far past the file's stated end is damage, not a long still picture.
_MAX_JUMP = 60.0
# Boxes of an ISO file (mp4, mov, m4a) that may stand first.
_ISO_FIRST = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp"}


@dataclass(frozen=True)
class MediaInfo:
    """What a media file says about itself; the numbers come from headers, nothing is decoded.

    Attributes:
        has_video: a video stream is there (the cover picture of a song is not one).
        has_audio: an audio stream is there.
        fps: average frames per second of the video, 0 without one.
        frames: stated number of frames, or duration times rate where the container has no count.
        width: picture width in pixels, before rotation.
        height: picture height in pixels, before rotation.
        duration: seconds; of the longer stream.
        sample_rate: of the sound in Hz, 0 without any.
    """

    has_video: bool
    has_audio: bool
    fps: float
    frames: int
    width: int
    height: int
    duration: float
    sample_rate: int


class Frame:
    """One picture on the resampled time line; converted only in the formats asked for.

    Attributes:
        time: seconds from the first picture of the file, a multiple of 1 / fps.
        file_fps: average frames per second that the file states, 0 if it does not.
    """

    def __init__(self, source: av.VideoFrame, time: float, file_fps: float = 0.0):
        self.time = time
        self.file_fps = file_fps
        self._source = source

    def rgb(self) -> np.ndarray:
        """uint8 (H, W, 3), red first."""
        return self._convert("rgb24")

    def grey(self) -> np.ndarray:
        """uint8 (H, W), full range."""
        return self._convert("gray")

    def _convert(self, pixel_format: str) -> np.ndarray:
        picture = self._source.to_ndarray(format=pixel_format)
        # FFmpeg states rotation in degrees anti-clockwise, as numpy turns.
        quarter_turns = round(self._source.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(picture, quarter_turns)) if quarter_turns else picture


def probe(path: str | Path) -> MediaInfo:
    """Read the headers of an audio or video file.

    Args:
        path: the file.

    Raises:
        MediaError: missing, empty, truncated (an mp4 whose boxes end past the file), or not media.
    """
    with _open(path) as container:
        video, audio = _video_stream(container), _audio_stream(container)
        if video is None and audio is None:
            raise MediaError(path, "no video and no sound in it: not a media file")
        fps = float(video.average_rate or video.guessed_rate or 0) if video else 0.0
        duration = max(
            [float(s.duration * s.time_base) for s in (video, audio) if s and s.duration],
            default=container.duration / av.time_base if container.duration else 0.0,
        )
        return MediaInfo(
            has_video=video is not None,
            has_audio=audio is not None,
            fps=fps,
            frames=(video.frames or round(duration * fps)) if video else 0,
            width=video.width if video else 0,
            height=video.height if video else 0,
            duration=duration,
            sample_rate=audio.sample_rate if audio else 0,
        )


def iter_frames(path: str | Path, fps: float = 25.0) -> Iterator[np.ndarray]:
    """RGB pictures of a video at `fps`; see `iter_video`.

    Args:
        path: the file.
        fps: frames per second wanted.

    Yields:
        uint8 (H, W, 3), red first.

    Raises:
        MediaError: see `iter_video`.
    """
    for frame in iter_video(path, fps):
        yield frame.rgb()


def iter_video(path: str | Path, fps: float = 25.0) -> Iterator[Frame]:
    """Decode a video once, in a stream, and yields pictures at a constant rate.

    Picture i is the one whose time stamp is nearest to `i / fps` seconds after the first (the
    earlier one in a tie), so a faster file is thinned, a slower one held, and a file whose rate
    varies keeps its timing. The memory used does not grow with the length.

    Args:
        path: the file.
        fps: frames per second wanted.

    Yields:
        `Frame`, about duration times fps of them.

    Raises:
        MediaError: missing, empty, truncated, not media, or without a video stream. A file that
            breaks off in mid-stream raises after the frames before the break.
    """
    if fps <= 0:
        raise ValueError(f"fps must be positive, not {fps}")
    with _open(path) as container:
        stream = _video_stream(container)
        if stream is None:
            raise MediaError(path, "no video stream in it")
        yield from _resample(path, _timed_frames(path, container, stream), stream, fps)


def read_audio(path: str | Path, sample_rate: int = 16000) -> np.ndarray:
    """The sound of an audio or a video file, mixed down to one channel.

    Audio files are read by libsndfile, everything else by FFmpeg. In a video, sample 0 is the
    moment of the first picture: sound that starts later is preceded by silence, sound that starts
    earlier is cut. Sound of videos and resampled sound is rounded to 16 bits, so that writing it
    to FLAC and reading it back changes nothing.

    Args:
        path: the file.
        sample_rate: Hz wanted.

    Returns:
        float32 (N,) in [-1, 1].

    Raises:
        MediaError: missing, empty, truncated, not media, or without sound.
    """
    _check_bytes(path)
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError):
        return _read_stream_audio(path, sample_rate)
    if len(samples) == 0:
        raise MediaError(path, "no sound in it: 0 samples")
    mono = samples.mean(axis=1, dtype=np.float32)
    return mono if rate == sample_rate else _resample_array(mono, rate, sample_rate)


# ---------------------------------------------------------------------------------- containers


def _check_bytes(path: str | Path) -> None:
    """Raise for what can be seen without a demuxer: no such file, no bytes, boxes cut off."""
    file = Path(path)
    if not file.exists():
        raise MediaError(path, "no such file")
    if not file.is_file():
        raise MediaError(path, "not a file")
    size = file.stat().st_size
    if size == 0:
        raise MediaError(path, "empty file (0 bytes)")
    # An mp4 that lost its tail still opens when its index stands in front, and FFmpeg then stops
    # early with at most a warning; the box sizes tell at once.
    position, boxes = 0, []
    with open(file, "rb") as stream:
        while position + 8 <= size:
            stream.seek(position)
            header = stream.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if position == 0 and kind not in _ISO_FIRST:
                return
            boxes.append(kind)
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            elif length == 0:  # to the end of the file
                length = size - position
            if length < 8 or position + length > size:
                name = kind.decode("latin-1")
                raise MediaError(
                    path,
                    f"truncated: box '{name}' at byte {position} says {length} bytes, "
                    f"{size - position} are there",
                )
            position += length
    if boxes and b"moov" not in boxes:
        raise MediaError(path, "truncated: its index (box 'moov') is missing")


@contextmanager
def _open(path: str | Path) -> Iterator[Any]:
    """An open container; FFmpeg's errors become MediaError, inside the block too."""
    _check_bytes(path)
    try:
        with av.open(str(path)) as container:
            yield container
    except MediaError:
        raise
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise MediaError(path, f"not media, or damaged ({error.strerror})") from error
    except av.error.FFmpegError as error:
        raise MediaError(path, f"cannot be read ({error.strerror})") from error


def _video_stream(container: Any) -> Any:
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    return next((s for s in streams if s.codec_context is not None and s.width), None)


def _audio_stream(container: Any) -> Any:
    return next((s for s in container.streams.audio if s.codec_context is not None), None)


def _decode(path: str | Path, container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames of one stream; damage in the middle is an error, not a shorter file."""
    decoded = 0
    for packet in container.demux(stream):
        broken = packet.is_corrupt
        frames = []
        with suppress(av.error.EOFError):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                broken = True
        if broken:
            raise MediaError(path, f"truncated or damaged after {decoded} frames")
        decoded += len(frames)
        yield from frames


# ---------------------------------------------------------------------------------- pictures


def _timed_frames(path: str | Path, container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
    """(seconds, frame) in rising order of time; files without time stamps count frames."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    stated_end = float(container.duration / av.time_base) if container.duration else 0.0
    last, first = -np.inf, 0.0
    # One thread a file: the workers of the ROI stage already fill the machine.
    stream.thread_type = "NONE"
    for index, frame in enumerate(_decode(path, container, stream)):
        time = index / rate if frame.pts is None else float(frame.pts * frame.time_base)
        if time <= last:
            continue
        if np.isinf(last):
            first = time
        elif time - last > _MAX_JUMP and time - first > stated_end + _MAX_JUMP:
            raise MediaError(path, f"damaged: time stamps jump from {last:.1f} to {time:.1f} s")
        last = time
        yield time, frame


def _resample(
    path: str | Path, timed: Iterator[tuple[float, Any]], stream: Any, fps: float
) -> Iterator[Frame]:
    stated = float(stream.average_rate or stream.guessed_rate or 0)
    rate = stated or fps
    first = previous = None
    emitted = 0
    for time, frame in timed:
        if previous is None:
            first = time
        else:
            # The 1e-6 keeps ties on the earlier picture in spite of rounding.
            while first + emitted / fps <= (previous[0] + time) / 2 + 1e-6:
                yield Frame(previous[1], emitted / fps, stated)
                emitted += 1
        previous = (time, frame)
    if previous is None:
        raise MediaError(path, "no pictures in its video stream")
    time, frame = previous
    shown = float(frame.duration * frame.time_base) if frame.duration else 1 / rate
    total = max(round((time + shown - first) * fps), 1)
    promised = _stated_duration(stream)
    if time + shown - first < 0.8 * promised - 0.5:
        raise MediaError(
            path, f"truncated: {time + shown - first:.1f} of {promised:.1f} s of video are there"
        )
    for index in range(emitted, total):
        yield Frame(frame, index / fps, stated)


def _stated_duration(stream: Any) -> float:
    """Seconds that the header promises for this stream; 0 where it does not say."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    # Matroska: a tag such as 00:00:03.000000000.
    parts = stream.metadata.get("DURATION", "").split(":")
    with suppress(ValueError):
        return sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=True))
    return 0.0


# ---------------------------------------------------------------------------------- sound


def _resampler(sample_rate: int) -> av.AudioResampler:
    return av.AudioResampler(format="s16", layout="mono", rate=sample_rate)


def _joined(chunks: list[np.ndarray]) -> np.ndarray:
    joined = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int16)
    return joined.astype(np.float32) / 32768


def _resample_array(mono: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    resampler = _resampler(sample_rate)
    frame = av.AudioFrame.from_ndarray(mono[None], format="flt", layout="mono")
    frame.sample_rate = rate
    out = [*resampler.resample(frame), *resampler.resample(None)]
    return _joined([f.to_ndarray()[0] for f in out])


def _read_stream_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    with _open(path) as container:
        stream = _audio_stream(container)
        if stream is None:
            raise MediaError(path, "no sound in it")
        resampler = _resampler(sample_rate)
        chunks, start = [], None
        for frame in _decode(path, container, stream):
            if start is None:
                start = float(frame.pts * frame.time_base) if frame.pts is not None else 0.0
            frame.pts = None  # gaps are not filled; only the start is aligned
            chunks += [f.to_ndarray()[0] for f in resampler.resample(frame)]
        if start is None:
            raise MediaError(path, "no sound in it: 0 samples")
        chunks += [f.to_ndarray()[0] for f in resampler.resample(None)]
        begin, video = None, _video_stream(container)
        if video is not None and video.start_time is not None:
            # Here, not later: the streams of a container that was closed are freed memory.
            begin = float(video.start_time * video.time_base)
    samples = _joined(chunks)
    if begin is None:
        return samples
    offset = round((start - begin) * sample_rate)
    if offset > 0:
        return np.concatenate([np.zeros(offset, dtype=np.float32), samples])
    if -offset >= len(samples):
        raise MediaError(path, "its sound ends before the first picture")
    return samples[-offset:]
