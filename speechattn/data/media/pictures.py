"""The pictures of a video at a stated rate.

Pictures are picked by time stamp, so that 25, 29.97, 50 and variable rates all come out at the
rate that was asked for, and turned as the rotation flag of telephones says.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np

from speechattn.data.media.container import decode, open_media, video_stream
from speechattn.errors import MediaError

# A time stamp that jumps this far past the file's stated end is damage, not a long still picture.
_MAX_JUMP = 60.0


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
        """Return uint8 (H, W, 3), red first."""
        return self._convert("rgb24")

    def grey(self) -> np.ndarray:
        """Return uint8 (H, W), full range."""
        return self._convert("gray")

    def _convert(self, pixel_format: str) -> np.ndarray:
        picture = self._source.to_ndarray(format=pixel_format)
        # FFmpeg states rotation in degrees anti-clockwise, as numpy turns.
        quarter_turns = round(self._source.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(picture, quarter_turns)) if quarter_turns else picture


def iter_frames(path: str | Path, fps: float = 25.0) -> Iterator[np.ndarray]:
    """Yield the pictures of `iter_video`, uint8 (H, W, 3), red first."""
    for frame in iter_video(path, fps):
        yield frame.rgb()


def iter_video(path: str | Path, fps: float = 25.0) -> Iterator[Frame]:
    """Decode a video once, in a stream, and yield pictures at `fps` a second.

    Picture i is the one whose time stamp is nearest to `i / fps` seconds after the first (the
    earlier one in a tie), so a faster file is thinned, a slower one held, and a file whose rate
    varies keeps its timing. The memory used does not grow with the length.

    Yields:
        `Frame`, about duration times fps of them.

    Raises:
        MediaError: missing, empty, truncated, not media, or without a video stream. A file that
            breaks off in mid-stream raises after the frames before the break.
    """
    if fps <= 0:
        raise ValueError(f"fps must be positive, not {fps}")
    with open_media(path) as container:
        stream = video_stream(container)
        if stream is None:
            raise MediaError(path, "no video stream in it")
        yield from _resample(path, _timed_frames(path, container, stream), stream, fps)


def _timed_frames(path: str | Path, container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
    """Yield (seconds, frame) in order of time; without time stamps, frames are counted."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    stated_end = float(container.duration / av.time_base) if container.duration else 0.0
    last, first = -np.inf, 0.0
    # One thread a file: the workers of the ROI stage already fill the machine.
    stream.thread_type = "NONE"
    for index, frame in enumerate(decode(path, container, stream)):
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
        first = time if first is None else first
        # The 1e-6 keeps ties on the earlier picture in spite of rounding.
        while previous and first + emitted / fps <= (previous[0] + time) / 2 + 1e-6:
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
    """Return the seconds that the header promises for this stream; 0 where it does not say."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    # Matroska: a tag such as 00:00:03.000000000.
    parts = stream.metadata.get("DURATION", "").split(":")
    with suppress(ValueError):
        return sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=True))
    return 0.0
