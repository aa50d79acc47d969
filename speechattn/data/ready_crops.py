"""Mouth crops that are ready: square videos and numpy arrays."""

from pathlib import Path

import cv2
import numpy as np

from speechattn.errors import MediaError

# A square video of at most so many times the crop's side is taken for a mouth crop, not a face.
READY_CROP = 1.5


def resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Scales square grey frames (T, H, H) to (T, size, size)."""
    if frames.shape[1:] == (size, size):
        return frames
    return np.stack([cv2.resize(f, (size, size), interpolation=cv2.INTER_AREA) for f in frames])


def read_crop_array(path: str | Path, size: int) -> np.ndarray:
    """Reads mouth crops stored by numpy."""
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
    return resize(frames, size)
