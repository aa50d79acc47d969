"""MediaPipe's face landmarks as a detector (optional: `pip install 'mediapipe<0.10.30'`).

Lugaresi et al. 2019, "MediaPipe: a framework for building perception pipelines"
(https://arxiv.org/abs/1906.08172); the FaceMesh solution carries its weights in the wheel.
"""

import numpy as np

from speechattn.data.crops.roi.detector import Face
from speechattn.errors import ConfigError, missing_extra

# Points of the 468-point mesh: corners of both eyes (averaged), nose tip, mouth corners; those
# that stand on the left of the picture first.
_EYES = ((33, 133), (362, 263))
_NOSE, _MOUTH = 1, (61, 291)


class MediaPipeDetector:
    """FaceMesh, every picture on its own.

    Args:
        max_faces: most faces looked for in a picture.
        min_score: confidence from which a face counts.

    Raises:
        ConfigError: mediapipe is not installed, or is a version without FaceMesh.
    """

    def __init__(self, max_faces: int = 4, min_score: float = 0.5):
        try:
            import mediapipe
        except ImportError as error:
            raise missing_extra("mediapipe", "mediapipe") from error
        if (solutions := getattr(mediapipe, "solutions", None)) is None:
            version = getattr(mediapipe, "__version__", "?")
            advice = "pip install 'mediapipe<0.10.30'"
            raise ConfigError(f"mediapipe {version} has no solutions.face_mesh: {advice}")
        self._min_score = min_score
        self._mesh = solutions.face_mesh.FaceMesh(
            static_image_mode=True, max_num_faces=max_faces, min_detection_confidence=min_score
        )

    def detect(self, frame: np.ndarray) -> list[Face]:
        """Find every face in `frame`, uint8 RGB (H, W, 3); all have the score `min_score`."""
        meshes = self._mesh.process(np.ascontiguousarray(frame)).multi_face_landmarks or []
        extent = np.array([frame.shape[1], frame.shape[0]], dtype=np.float32)
        return [
            face_of_mesh(np.array([[p.x, p.y] for p in f.landmark]) * extent, self._min_score)
            for f in meshes
        ]


def face_of_mesh(mesh: np.ndarray, score: float) -> Face:
    """Reduce a face mesh (468 or more, 2) in pixels to its box and the five points."""
    points = [mesh[list(pair)].mean(axis=0) for pair in _EYES]
    points += [mesh[_NOSE], mesh[_MOUTH[0]], mesh[_MOUTH[1]]]
    box = np.concatenate([mesh.min(axis=0), mesh.max(axis=0)])
    return Face(box.astype(np.float32), score, np.stack(points).astype(np.float32))
