"""A raw face video in, mouth crops out: the one function that recipes and `Transcriber` share."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechattn.data.roi.detector import Face, FaceDetector, RefiningDetector
from speechattn.data.roi.landmarks import load_landmarks
from speechattn.data.roi.mtcnn import MtcnnDetector
from speechattn.data.roi.options import RoiOptions
from speechattn.data.roi.track import Tracker
from speechattn.data.video import Frame, iter_video
from speechattn.errors import MediaError, NoFaceError

_log = logging.getLogger(__name__)
# Containers round: a landmark file may be this many rows longer or shorter than the video.
_ROW_SLACK = 3


@dataclass(frozen=True, eq=False)
class MouthCrop:
    """The mouth of one video.

    Attributes:
        frames: uint8 (T, size, size), grey.
        fps: frames per second.
        landmarks: float32 (T, 5, 2), smoothed, in pixels of the video's pictures.
        detected: fraction of the pictures looked at in which the face was found.
    """

    frames: np.ndarray
    fps: float
    landmarks: np.ndarray
    detected: float


class MouthCropper:
    """Finds the speaker's mouth and cuts it out. The same file gives the same bytes every time.

    Args:
        options: geometry and rates.
        detector: finds faces; MTCNN by default.
    """

    def __init__(self, options: RoiOptions | None = None, detector: FaceDetector | None = None):
        self.options = options or RoiOptions()
        self._detector = detector

    def crop(self, path: str | Path, landmarks: str | Path | None = None) -> MouthCrop:
        """Crops the mouth of the face that is seen longest (see `Tracker.finish`).

        A face that is there for part of the video only: before and after, its first and last crop
        are repeated, so that crops and sound stay together.

        Args:
            path: video file; decoded once, in a stream.
            landmarks: landmark file (see `landmarks`), used instead of the detector.

        Raises:
            NoFaceError: no face in any picture looked at.
            MediaError: the video or the landmark file cannot be used.
        """
        if landmarks is not None:
            return self._crop_landmarks(path, landmarks)
        if self._detector is None:
            self._detector = MtcnnDetector()
        return self._run(path, _Locator(self._detector, self.options), self.options.detect_every)

    def _crop_landmarks(self, path: str | Path, landmarks: str | Path) -> MouthCrop:
        points, present = load_landmarks(landmarks, self.options.fps)

        def locate(index: int, frame: Frame) -> list[Face]:
            row = points[min(index, len(points) - 1)]
            # One box for all: there is one face, however fast it moves.
            return [Face(np.array([0, 0, 1, 1], dtype=np.float32), 1.0, row)]

        crop = self._run(path, locate, 1)
        if abs(len(crop.frames) - len(points)) > _ROW_SLACK:
            raise MediaError(
                landmarks, f"{len(points)} rows for {len(crop.frames)} frames of video {path}"
            )
        return MouthCrop(crop.frames, crop.fps, crop.landmarks, present)

    def _run(
        self, path: str | Path, locate: Callable[[int, Frame], list[Face]], every: int
    ) -> MouthCrop:
        tracker = Tracker(self.options, every)
        total = looked = 0
        for index, frame in enumerate(iter_video(path, self.options.fps)):
            tracker.window.append(frame.grey())
            total += 1
            if index % every == 0:
                tracker.update(locate(index, frame))
                looked += 1
        track = tracker.finish()
        if track is None:
            raise NoFaceError(path, f"no face found in {looked} pictures of {total}")
        if len(tracker.tracks) > 1:
            _log.debug(
                "%s: %d faces, took one seen %d times", path, len(tracker.tracks), track.seen
            )
        missing = (track.start, total - track.end)
        return MouthCrop(
            frames=np.pad(np.stack(track.crops), (missing, (0, 0), (0, 0)), mode="edge"),
            fps=self.options.fps,
            landmarks=np.pad(np.stack(track.landmarks), (missing, (0, 0), (0, 0)), mode="edge"),
            detected=track.seen / looked,
        )


class _Locator:
    """Searches the whole picture now and then, and follows the faces between.

    Args:
        detector: the detector, which may or may not be able to follow.
        options: for `search_every`.
    """

    def __init__(self, detector: FaceDetector, options: RoiOptions):
        self._detector = detector
        self._refiner = detector if isinstance(detector, RefiningDetector) else None
        self._every = options.search_every
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
