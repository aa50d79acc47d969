"""Containers: what a file holds, and the decoded frames of one of its streams.

Everything goes through PyAV (FFmpeg inside a wheel). An unusable file raises `MediaError`, whose
text names the file and what is wrong with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from speechattn.errors import MediaError

# Boxes of an ISO file (mp4, mov, m4a) that may stand first.
_ISO_FIRST = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp"}


@dataclass(frozen=True)
class MediaInfo:
    """What a media file says about itself; the numbers come from headers, nothing is decoded."""

    has_video: bool  # a video stream is there (the cover picture of a song is not one)
    has_audio: bool  # an audio stream is there
    fps: float  # average frames per second of the video, 0 without one
    frames: int  # as stated, or duration times rate where the container has no count
    width: int  # of the picture in pixels, before rotation
    height: int  # likewise
    duration: float  # seconds; of the longer stream
    sample_rate: int  # of the sound in Hz, 0 without any


def probe(path: str | Path) -> MediaInfo:
    """Read the headers of an audio or video file.

    Raises:
        MediaError: missing, empty, truncated (an mp4 whose boxes end past the file), or not media.
    """
    with open_media(path) as container:
        video, audio = video_stream(container), audio_stream(container)
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


def check_bytes(path: str | Path) -> None:
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
                where = f"box '{kind.decode('latin-1')}' at byte {position}"
                there = f"says {length} bytes, {size - position} are there"
                raise MediaError(path, f"truncated: {where} {there}")
            position += length
    if boxes and b"moov" not in boxes:
        raise MediaError(path, "truncated: its index (box 'moov') is missing")


@contextmanager
def open_media(path: str | Path) -> Iterator[Any]:
    """Yield an open container; FFmpeg's errors become MediaError, inside the block too."""
    check_bytes(path)
    try:
        with av.open(str(path)) as container:
            yield container
    except MediaError:
        raise
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise MediaError(path, f"not media, or damaged ({error.strerror})") from error
    except av.error.FFmpegError as error:
        raise MediaError(path, f"cannot be read ({error.strerror})") from error


def video_stream(container: Any) -> Any:
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    return next((s for s in streams if s.codec_context is not None and s.width), None)


def audio_stream(container: Any) -> Any:
    return next((s for s in container.streams.audio if s.codec_context is not None), None)


def decode(path: str | Path, container: Any, stream: Any) -> Iterator[Any]:
    """Decode the frames of one stream; damage in the middle is an error, not a shorter file."""
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
