"""Faces followed over time, each cut out as the video streams past.

Which face is the speaker is known only at the end, while the pictures cannot be kept until then:
so every face is cropped on the way (a crop is 9 kB, a 1080p picture 2 MB) from a short window of
pictures, and the crops of the chosen face are handed out. Those of a long video wait on disk.
"""

from collections import deque

import numpy as np

from speechattn.data.crops.roi.crop import crop_transform, warp
from speechattn.data.crops.roi.crop_buffer import MEMORY_LIMIT, CropBuffer, SpillFile
from speechattn.data.crops.roi.detector import Face, overlap
from speechattn.data.crops.roi.options import RoiOptions


class RecentFrames:
    """The last `length` pictures of the video, by frame number."""

    def __init__(self, length: int):
        self._pictures: deque[np.ndarray] = deque(maxlen=length)
        self.end = 0

    def append(self, grey: np.ndarray) -> None:
        """Add the next picture, uint8 (H, W)."""
        self._pictures.append(grey)
        self.end += 1

    @property
    def start(self) -> int:
        """Return the number of the oldest picture that is kept."""
        return self.end - len(self._pictures)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._pictures[index - self.start]


class Track:
    """One face from where it is first seen to where it is lost.

    It was first seen in frame `index`; the crops begin with the oldest of the recent pictures.
    """

    def __init__(
        self, face: Face, index: int, recent: RecentFrames, *, options: RoiOptions, spill: SpillFile
    ):
        self._recent, self._options = recent, options
        self._dense = [face.points]  # one (5, 2) a frame from `_first` to `last`
        self._first = self.last = index
        self.box, self._area, self.seen = face.box, face.area, 1
        self.start = recent.start
        self.crops = CropBuffer(spill)
        self.landmarks: list[np.ndarray] = []

    @property
    def area(self) -> float:
        """Return the mean area of the face's box, square pixels."""
        return self._area / self.seen

    @property
    def end(self) -> int:
        """Return the frame after the last one cropped."""
        return self.start + len(self.crops)

    def extend(self, face: Face, index: int) -> None:
        """Add the face as seen in frame `index`, and crop what is settled by that."""
        before, step = self._dense[-1], index - self.last
        for i in range(1, step + 1):
            self._dense.append(before + (face.points - before) * np.float32(i / step))
        self.last, self.box, self.seen = index, face.box, self.seen + 1
        self._area += face.area
        self.crop_until(index - self._options.smoothing // 2 + 1)

    def crop_until(self, stop: int) -> None:
        """Crop the frames before `stop`; the first and last place of the face hold beyond it."""
        half, size = self._options.smoothing // 2, self._options.size
        for index in range(self.end, stop):
            around = np.arange(index - half, index + half + 1) - self._first
            around = around.clip(0, len(self._dense) - 1)
            points = np.mean([self._dense[i] for i in around], axis=0, dtype=np.float64)
            transform = crop_transform(points, size, self._options.mouth_width)
            self.crops.append(warp(self._recent[index], transform, size))
            self.landmarks.append(points.astype(np.float32))


class Tracker:
    """Links the faces of successive frames into tracks by the overlap of their boxes.

    Args:
        options: see `RoiOptions`.
        every: frames between two calls of `update`.
        memory_limit: bytes of crops held in memory before they go to a temporary file.
    """

    def __init__(self, options: RoiOptions, every: int, memory_limit: int = MEMORY_LIMIT):
        self._options = options
        self._max_gap = max(round(options.max_gap * options.fps), every)
        # Enough for a face that returns after the longest gap, one step late, half a smoothing
        # window back; a new face is cropped that far back too.
        self.recent = RecentFrames(self._max_gap + every + options.smoothing // 2 + 1)
        self.tracks: list[Track] = []
        self._spill = SpillFile(memory_limit)
        self._live: list[Track] = []

    def update(self, faces: list[Face]) -> None:
        """Link the faces in the newest picture to the tracks."""
        index = self.recent.end - 1
        for track in [t for t in self._live if index - t.last > self._max_gap]:
            track.crop_until(index)
            self._live.remove(track)
            if self._spill.needed:
                track.crops.flush()
        pairs = [(overlap(t.box, face.box), t, face) for t in self._live for face in faces]
        free_tracks, free_faces = list(self._live), list(faces)
        for value, track, face in sorted(pairs, key=lambda pair: -pair[0]):
            if value < self._options.link_overlap:
                break
            if track in free_tracks and any(face is f for f in free_faces):
                track.extend(face, index)
                free_tracks.remove(track)
                free_faces = [f for f in free_faces if f is not face]
        for face in free_faces:
            track = Track(face, index, self.recent, options=self._options, spill=self._spill)
            self._live.append(track)
            self.tracks.append(track)

    def finish(self) -> list[Track]:
        """Return all tracks, those still live cropped to the end of the video."""
        for track in self._live:
            track.crop_until(self.recent.end)
        return self.tracks
