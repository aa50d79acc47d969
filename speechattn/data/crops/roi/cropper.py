"""A raw face video in, mouth crops out: shared by recipes and recognition."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechattn.data.crops.roi.choice import choose
from speechattn.data.crops.roi.crop_buffer import MEMORY_LIMIT
from speechattn.data.crops.roi.detector import Face, FaceDetector, RefiningDetector
from speechattn.data.crops.roi.faces import Detections
from speechattn.data.crops.roi.landmarks import load_landmarks
from speechattn.data.crops.roi.mtcnn import MtcnnDetector
from speechattn.data.crops.roi.options import RoiOptions
from speechattn.data.crops.roi.track import Track, Tracker
from speechattn.data.media import Frame, iter_video
from speechattn.errors import MediaError, NoFaceError

_log = logging.getLogger(__name__)
_Locate = Callable[[int, Frame], list[Face]]
# Containers round: a landmark file may be this many rows longer or shorter than the video.
_ROW_SLACK = 3
# Below this a clip shows its face for so little of the time that a person should look at it.
_SELDOM = 0.5


class StaleDetections(Exception):
    """Cached detections do not fit the video."""


@dataclass(frozen=True, eq=False)
class MouthCrop:
    """The mouth of one video."""

    frames: np.ndarray  # uint8 (T, side, side), grey
    fps: float  # frames per second
    landmarks: np.ndarray  # float32 (T, 5, 2), smoothed, in pixels of the video's pictures
    detected: float  # fraction of the pictures searched in which the face was found
    detections: Detections = ()  # in every picture searched; none if landmarks came with the video
    note: str = ""  # what a person should know about the clip; empty for most


class MouthCropper:
    """Finds the speaker's mouth and cuts it out. The same file gives the same bytes every time.

    Args:
        options: geometry and rates.
        detector: finds faces; MTCNN by default.
        memory_limit: bytes of crops held in memory before they go to a temporary file.
    """

    def __init__(
        self,
        options: RoiOptions | None = None,
        detector: FaceDetector | None = None,
        memory_limit: int = MEMORY_LIMIT,
    ):
        self.options = options or RoiOptions()
        self._detector, self._memory_limit = detector, memory_limit
        side, width = self.options.side, self.options.side_mouth_width
        self._cut = replace(self.options, size=side, mouth_width=width, scales=())

    def crop(
        self,
        path: str | Path,
        landmarks: str | Path | None = None,
        detections: Detections | None = None,
    ) -> MouthCrop:
        """Crop the mouth of the face that is seen longest (see `choice`).

        A face that is there for part of the video only: before and after, its first and last crop
        are repeated, so that crops and sound stay together.

        Args:
            path: video file; decoded once, in a stream.
            landmarks: landmark file (see `landmarks`), used instead of the detector.
            detections: faces found in this video before, used instead of the detector.

        Raises:
            NoFaceError: no face in any picture searched.
            MediaError: the video or the landmark file cannot be used.
            StaleDetections: `detections` are of another number of pictures.
        """
        if landmarks is not None:
            return self._crop_landmarks(path, landmarks)
        every = self.options.detect_every
        if detections is not None:
            return self._run(path, _Replay(detections, every), every)
        return self._run(path, self._locator(), every)

    def stream(self, path: str | Path) -> Iterator[np.ndarray]:
        """Yield the frames of `crop(path)` in pieces, uint8 (n, side, side).

        For videos of any length: the crops wait on disk until the speaker is known, and are read
        as they are asked for.

        Raises:
            NoFaceError, MediaError: as of `crop`.
        """
        track, _, total, *_ = self._follow(path, self._locator(), self.options.detect_every)
        yield from track.crops.blocks(track.start, total - track.end)

    def _locator(self) -> "_Locator":
        if self._detector is None:
            self._detector = MtcnnDetector()
        return _Locator(self._detector, self.options)

    def _crop_landmarks(self, path: str | Path, landmarks: str | Path) -> MouthCrop:
        points, present = load_landmarks(landmarks, self.options.fps)

        def locate(index: int, frame: Frame) -> list[Face]:
            row = points[min(index, len(points) - 1)]
            # One box for all: there is one face, however fast it moves.
            return [Face(np.array([0, 0, 1, 1], dtype=np.float32), 1.0, row)]

        crop = self._run(path, locate, 1)
        rows, frames = len(points), len(crop.frames)
        if abs(frames - rows) > _ROW_SLACK:
            raise MediaError(landmarks, f"{rows} rows for {frames} frames of video {path}")
        return replace(crop, detected=present, detections=())

    def _follow(
        self, path: str | Path, locate: _Locate, every: int
    ) -> tuple[Track, str, int, float, list[list[Face]]]:
        """Return the speaker's track, a note on the choice, count and rate of frames, all faces."""
        tracker = Tracker(self._cut, every, self._memory_limit)
        detections: list[list[Face]] = []
        total, file_fps = 0, 0.0
        for index, frame in enumerate(iter_video(path, self.options.fps)):
            tracker.recent.append(frame.grey())
            total, file_fps = total + 1, frame.file_fps
            if index % every == 0:
                detections.append(locate(index, frame))
                tracker.update(detections[-1])
        if isinstance(locate, _Replay) and len(detections) != (cached := len(locate.detections)):
            needed = len(detections)
            raise StaleDetections(f"{path}: {cached} detections cached, {needed} needed")
        tracks = tracker.finish()
        if not tracks:
            raise NoFaceError(path, f"no face found in {len(detections)} pictures of {total}")
        track, note = choose(tracks, self.options.tie)
        if (count := len(tracker.tracks)) > 1:
            _log.debug("%s: %d faces, took one seen %d times", path, count, track.seen)
        return track, note, total, file_fps, detections

    def _run(self, path: str | Path, locate: _Locate, every: int) -> MouthCrop:
        track, note, total, file_fps, detections = self._follow(path, locate, every)
        detected, fps = track.seen / len(detections), self.options.fps
        missing = (track.start, total - track.end)
        landmarks = np.pad(np.stack(track.landmarks), (missing, (0, 0), (0, 0)), mode="edge")
        notes = [note] if note else []
        if detected < _SELDOM:
            notes.append(f"face found in {detected:.0%} of the pictures looked at")
        if file_fps and abs(file_fps / fps - 1) > 0.01:
            notes.append(f"resampled from {file_fps:.4g} to {fps:g} fps")
        frames = track.crops.array(*missing)
        return MouthCrop(frames, fps, landmarks, detected, detections, "; ".join(notes))


class _Replay:
    """Faces found before, in every so many-th picture, in place of a detector."""

    def __init__(self, detections: Detections, every: int):
        self.detections, self._every = detections, every

    def __call__(self, index: int, frame: Frame) -> list[Face]:
        number = index // self._every
        return list(self.detections[number]) if number < len(self.detections) else []


class _Locator:
    """Searches the whole picture every `search_every` frames, and follows the faces between."""

    def __init__(self, detector: FaceDetector, options: RoiOptions):
        self._detector, self._every = detector, options.search_every
        self._refiner = detector if isinstance(detector, RefiningDetector) else None
        self._searched = -options.search_every
        self._faces: list[Face] = []

    def __call__(self, index: int, frame: Frame) -> list[Face]:
        picture = frame.rgb()
        known = len(self._faces)
        if self._refiner and known and index - self._searched < self._every:
            self._faces = self._refiner.refine(picture, self._faces)
            if len(self._faces) == known:
                return self._faces
        self._searched = index
        found = self._detector.detect(picture)
        # Refined once even so: points that come by the same way jitter less among each other.
        self._faces = (self._refiner.refine(picture, found) or found) if self._refiner else found
        return self._faces
