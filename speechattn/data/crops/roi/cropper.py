"""A raw face video in, mouth crops out: the one function that recipes and `Transcriber` share."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechattn.data.crops.roi.choice import choose
from speechattn.data.crops.roi.detector import Face, FaceDetector, RefiningDetector
from speechattn.data.crops.roi.faces import Looks
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


class StaleFaces(Exception):
    """Kept faces that do not fit the video."""


@dataclass(frozen=True, eq=False)
class MouthCrop:
    """The mouth of one video.

    Attributes:
        frames: uint8 (T, side, side), grey.
        fps: frames per second.
        landmarks: float32 (T, 5, 2), smoothed, in pixels of the video's pictures.
        detected: fraction of the pictures looked at in which the face was found.
        looks: the faces in every picture looked at; empty if landmarks came with the video.
        note: what a person should know about the clip; empty for most.
    """

    frames: np.ndarray
    fps: float
    landmarks: np.ndarray
    detected: float
    looks: Looks = ()
    note: str = ""


class MouthCropper:
    """Finds the speaker's mouth and cuts it out. The same file gives the same bytes every time.

    Args:
        options: geometry and rates.
        detector: finds faces; MTCNN by default.
    """

    def __init__(self, options: RoiOptions | None = None, detector: FaceDetector | None = None):
        self.options = options or RoiOptions()
        self._detector = detector
        self._cut = replace(
            self.options,
            size=self.options.side,
            mouth_width=self.options.side_mouth_width,
            scales=(),
        )

    def crop(
        self, path: str | Path, landmarks: str | Path | None = None, looks: Looks | None = None
    ) -> MouthCrop:
        """Crops the mouth of the face that is seen longest (see `choice`).

        A face that is there for part of the video only: before and after, its first and last crop
        are repeated, so that crops and sound stay together.

        Args:
            path: video file; decoded once, in a stream.
            landmarks: landmark file (see `landmarks`), used instead of the detector.
            looks: faces that were found in this video before, used instead of the detector.

        Raises:
            NoFaceError: no face in any picture looked at.
            MediaError: the video or the landmark file cannot be used.
            StaleFaces: `looks` are of another number of pictures.
        """
        if landmarks is not None:
            return self._crop_landmarks(path, landmarks)
        every = self.options.detect_every
        if looks is not None:
            return self._run(path, _Remembered(looks, every), every)
        return self._run(path, self._locator(), every)

    def stream(self, path: str | Path) -> Iterator[np.ndarray]:
        """The frames of `crop(path)` in pieces, uint8 (n, side, side).

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
        if abs(len(crop.frames) - len(points)) > _ROW_SLACK:
            raise MediaError(
                landmarks, f"{len(points)} rows for {len(crop.frames)} frames of video {path}"
            )
        return replace(crop, detected=present, looks=())

    def _follow(
        self, path: str | Path, locate: _Locate, every: int
    ) -> tuple[Track, str, int, float, list[list[Face]]]:
        """The speaker's track, the note on its choice, how many frames there are, the file's rate,
        and the faces in every picture looked at."""
        tracker = Tracker(self._cut, every)
        looks: list[list[Face]] = []
        total, file_fps = 0, 0.0
        for index, frame in enumerate(iter_video(path, self.options.fps)):
            tracker.window.append(frame.grey())
            total, file_fps = total + 1, frame.file_fps
            if index % every == 0:
                looks.append(locate(index, frame))
                tracker.update(looks[-1])
        if isinstance(locate, _Remembered) and len(looks) != len(locate.looks):
            raise StaleFaces(f"{path}: {len(locate.looks)} looks kept, {len(looks)} needed")
        tracks = tracker.finish()
        if not tracks:
            raise NoFaceError(path, f"no face found in {len(looks)} pictures of {total}")
        track, note = choose(tracks, self.options.tie)
        if len(tracker.tracks) > 1:
            _log.debug(
                "%s: %d faces, took one seen %d times", path, len(tracker.tracks), track.seen
            )
        return track, note, total, file_fps, looks

    def _run(self, path: str | Path, locate: _Locate, every: int) -> MouthCrop:
        track, note, total, file_fps, looks = self._follow(path, locate, every)
        detected = track.seen / len(looks)
        missing = (track.start, total - track.end)
        return MouthCrop(
            frames=track.crops.array(*missing),
            fps=self.options.fps,
            landmarks=np.pad(np.stack(track.landmarks), (missing, (0, 0), (0, 0)), mode="edge"),
            detected=detected,
            looks=looks,
            note="; ".join(filter(None, [note, *self._remarks(detected, file_fps)])),
        )

    def _remarks(self, detected: float, file_fps: float) -> list[str]:
        remarks = []
        if detected < _SELDOM:
            remarks.append(f"face found in {detected:.0%} of the pictures looked at")
        if file_fps and abs(file_fps / self.options.fps - 1) > 0.01:
            remarks.append(f"resampled from {file_fps:.4g} to {self.options.fps:g} fps")
        return remarks


class _Remembered:
    """Faces found before, in place of a detector.

    Args:
        looks: the faces in every picture looked at.
        every: frames from one look to the next.
    """

    def __init__(self, looks: Looks, every: int):
        self.looks, self._every = looks, every

    def __call__(self, index: int, frame: Frame) -> list[Face]:
        look = index // self._every
        return list(self.looks[look]) if look < len(self.looks) else []


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
