"""From five landmarks to a mouth crop: similarity transform onto a mean face, and the warp.

The order of work (align by a similarity transform to a mean face, average over time, cut 96x96
grey around the mouth) is that of Martinez et al. 2020 (https://arxiv.org/abs/2001.08702) and of
auto_avsr (https://github.com/mpc001/auto_avsr). Unlike there, alignment and cut are one warp, so a
pixel is interpolated once.
"""

import cv2
import numpy as np

# The five-point mean face of insightface (https://github.com/deepinsight/insightface), in
# pixels of a 112x112 aligned face.
_X = [38.2946, 73.5318, 56.0252, 41.5493, 70.7299]
_Y = [51.6963, 51.5014, 71.7366, 92.3655, 92.2041]
MEAN_FACE = np.stack([_X, _Y], axis=1)
_MOUTH_WIDTH = float(MEAN_FACE[4, 0] - MEAN_FACE[3, 0])


def _anchors(points: np.ndarray) -> np.ndarray:
    # Eyes, nose tip, and the middle of the mouth: its corners move with the speech itself.
    return np.concatenate([points[:3], points[3:].mean(axis=0, keepdims=True)])


_TARGET = _anchors(MEAN_FACE)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Find the rotation and uniform scale that bring `source` nearest to `target`.

    Least squares in closed form over (P, 2) points; no reflection (Umeyama 1991 in two dimensions,
    where complex numbers make it one line).

    Returns:
        float64 (2, 2): scale times rotation `A`, for `A @ (p - mean(source)) + mean(target)`.
    """
    a, b = source - source.mean(axis=0), target - target.mean(axis=0)
    spread = float((a**2).sum())
    if spread == 0:
        raise ValueError("all points coincide")
    real = float((a * b).sum()) / spread
    imaginary = float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / spread
    return np.array([[real, -imaginary], [imaginary, real]])


def crop_transform(points: np.ndarray, size: int, mouth_width: float) -> np.ndarray:
    """Compute the affine matrix from picture to crop, float64 (2, 3), for `cv2.warpAffine`.

    Args:
        points: (5, 2) landmarks.
        size: side of the crop in pixels.
        mouth_width: width of the mean face's mouth as a fraction of `size`.
    """
    points = np.asarray(points, dtype=np.float64)
    matrix = similarity(_anchors(points), _TARGET) * (mouth_width * size / _MOUTH_WIDTH)
    centre = (size - 1) / 2
    shift = np.array([centre, centre]) - matrix @ points[3:].mean(axis=0)
    return np.concatenate([matrix, shift[:, None]], axis=1)


def warp(grey: np.ndarray, transform: np.ndarray, size: int) -> np.ndarray:
    """Cut uint8 (size, size) out of a picture, uint8 (H, W), beyond which its edge is repeated.

    `transform` (2, 3) is that from picture to crop.
    """
    scale = float(np.hypot(transform[0, 0], transform[1, 0]))
    # Bilinear sampling skips pixels when the face is much larger than the crop: then warp to a
    # multiple of the size and average.
    factor = max(1, round(1 / scale))
    if factor > 1:
        # Pixel centres: crop x covers the large crop's factor * x ... factor * x + factor - 1.
        transform = transform * factor
        transform[:, 2] += (factor - 1) / 2
    side = (size * factor, size * factor)
    out = cv2.warpAffine(grey, transform, side, borderMode=cv2.BORDER_REPLICATE)
    return cv2.resize(out, (size, size), interpolation=cv2.INTER_AREA) if factor > 1 else out
