"""Mouth crops that are ready: square videos and numpy arrays."""

from pathlib import Path

import cv2
import numpy as np

from speechattn.data.crops.roi import RoiOptions
from speechattn.errors import MediaError

# A square video of at most so many times the crop's side is taken for a mouth crop, not a face.
READY_CROP = 1.5


def resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Scale square grey frames (T, H, H) to (T, size, size)."""
    if frames.shape[1:] == (size, size):
        return frames
    return np.stack([cv2.resize(f, (size, size), interpolation=cv2.INTER_AREA) for f in frames])


def fit(frames: np.ndarray, options: RoiOptions, path: str | Path) -> np.ndarray:
    """Ready crops (T, H, H) as the ROI stage would have cut them.

    Crops of the stage's own side are taken as they are. Others are taken to show what crops of
    `options.size` do, and scaled to it; a smaller scale is in the middle of that.

    Raises:
        MediaError: the model's scale is larger: they lack what it sees around the mouth.
    """
    if frames.shape[1] == options.side:
        return frames
    if options.size < options.side:
        raise MediaError(
            path,
            f"mouth crops of {frames.shape[1]} pixels, where this model sees {options.side} pixels "
            "of the face: give the video of the face, or crops of that size",
        )
    return resize(frames, options.size)


def read_crop_array(path: str | Path, options: RoiOptions) -> np.ndarray:
    """Read mouth crops stored by numpy; see `fit`."""
    try:
        # Not np.load: it takes archives as well.
        with open(path, "rb") as file:
            frames = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise MediaError(path, f"cannot be read as a numpy array: {error}") from error
    if frames.ndim != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise MediaError(path, f"crops are (T, H, W) uint8, not {frames.shape} {frames.dtype}")
    if frames.shape[1] != frames.shape[2]:
        raise MediaError(path, f"crops are square, not {frames.shape[2]} x {frames.shape[1]}")
    return fit(frames, options, path)
