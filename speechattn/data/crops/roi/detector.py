"""The interface of face detectors.

Points are (x, y) in pixels, in the order of `POINTS`, as seen in the picture: "left" is on the left
of it.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

POINTS = ("left eye", "right eye", "nose tip", "left mouth corner", "right mouth corner")


@dataclass(frozen=True, eq=False)
class Face:
    """One face in one picture."""

    box: np.ndarray  # float32 (4,): left, top, right, bottom in pixels; may reach past the picture
    score: float  # 0 to 1, the detector's own confidence
    points: np.ndarray  # float32 (5, 2): the five points of `POINTS`

    @property
    def area(self) -> float:
        """Return the area of the box in square pixels."""
        width, height = np.maximum(self.box[2:] - self.box[:2], 0)
        return float(width * height)


@runtime_checkable
class FaceDetector(Protocol):
    """Finds faces in one picture."""

    def detect(self, frame: np.ndarray) -> list[Face]:
        """Find every face in `frame`, uint8 RGB (H, W, 3); best first."""
        ...


@runtime_checkable
class RefiningDetector(FaceDetector, Protocol):
    """A detector that can follow faces more cheaply than it can find them."""

    def refine(self, frame: np.ndarray, faces: list[Face]) -> list[Face]:
        """Locate `faces`, of a picture shortly before, in `frame`; lost ones are left out."""
        ...


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over union of two boxes (4,)."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    return shared / union if union > 0 else 0.0
