"""Mouth crops that are ready: square videos and numpy arrays."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from speechattn.data.crops.roi import RoiOptions
from speechattn.errors import MediaError

# A square video of at most so many times the crop's side is taken for a mouth crop, not a face.
READY_CROP = 1.5


def fit_crops(frames: np.ndarray, options: RoiOptions, path: str | Path) -> np.ndarray:
    """Return ready crops (T, H, H) as the ROI stage would have cut them.

    Crops of the stage's own side are taken as they are. Others are taken to show what crops of
    `options.size` do, and scaled to it; a smaller scale is in the middle of that.

    Raises:
        MediaError: the model's scale is larger: they lack what it sees around the mouth.
    """
    if frames.shape[1] == options.side:
        return frames
    if options.size < options.side:
        known = f"mouth crops of {frames.shape[1]} pixels, where this model sees {options.side}"
        advice = "pixels of the face: give the video of the face, or crops of that size"
        raise MediaError(path, f"{known} {advice}")
    size = (options.size, options.size)
    if frames.shape[1:] == size:
        return frames
    return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames])


def is_crop_array(path: str | Path) -> bool:
    """Return whether a file holds crops that numpy stored."""
    return Path(path).suffix == ".npy"


def open_crops(path: str | Path) -> np.memmap:
    """Map crops that numpy stored, (T, H, H) uint8; raise OSError, ValueError, EOFError if none."""
    return np.lib.format.open_memmap(path, mode="r")


def read_crops(path: str | Path, options: RoiOptions, block: int) -> Iterator[np.ndarray]:
    """Read crops that numpy stored in pieces of `block` frames; see `fit_crops`.

    Raises:
        MediaError: they cannot be read, or are no crops.
    """
    try:
        mapped = open_crops(path)
    except (OSError, ValueError, EOFError) as error:
        raise MediaError(path, f"cannot be read as a numpy array: {error}") from error
    shape, kind = mapped.shape, mapped.dtype
    if len(shape) != 3 or kind != np.uint8 or 0 in shape:
        raise MediaError(path, f"crops are (T, H, W) uint8, not {shape} {kind}")
    if shape[1] != shape[2]:
        raise MediaError(path, f"crops are square, not {shape[2]} x {shape[1]}")
    for start in range(0, shape[0], block):
        # Mapped anew each time: pages that were read are given back.
        yield fit_crops(np.array(open_crops(path)[start : start + block]), options, path)
