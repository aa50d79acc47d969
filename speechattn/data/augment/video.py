"""Transforms of crops."""

import math
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from speechattn.data.augment.base import Array, ClipTransform, integer, like, uniform

_CHANNELS = 4  # as many as OpenCV turns at once


class RandomCrop(ClipTransform):
    """A square of the picture, at a random place that is the same for the whole clip.

    Args:
        size: side in pixels; None: that of the model, which `SpeechData` fills in.
    """

    def __init__(self, size: int | None = None):
        self.size = size

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        height, width = _picture_size(clip, self.size)
        top = integer(height - self.size + 1, generator)
        left = integer(width - self.size + 1, generator)
        return clip[..., top : top + self.size, left : left + self.size]


class CenterCrop(ClipTransform):
    """The square in the middle, for evaluation.

    Args:
        size: side in pixels.
    """

    def __init__(self, size: int = 88):
        self.size = size

    def __call__(self, clip: Array, generator: torch.Generator | None = None) -> Array:
        height, width = _picture_size(clip, self.size)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return clip[..., top : top + self.size, left : left + self.size]


def _picture_size(clip: Array, size: int) -> tuple[int, int]:
    height, width = clip.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"pictures of {height}x{width} have no {size}x{size} square in them")
    return height, width


class HorizontalFlip(ClipTransform):
    """Left and right swapped, in the whole clip or not at all.

    Args:
        p: probability.
    """

    def __init__(self, p: float = 0.5):
        self.p = p

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        if uniform(generator) >= self.p:
            return clip
        planes = _planes(clip)
        # As one tall picture: a flip row by row, of all frames at once.
        rows = planes.reshape(-1, planes.shape[-1])
        return like(clip, cv2.flip(rows, 1).reshape(clip.shape))


class RandomRotation(ClipTransform):
    """The picture turned about its middle by an angle that is the same for the whole clip.

    The angle is uniform; pixels are bilinear; what was outside is the nearest pixel of the edge.

    Args:
        degrees: largest angle, either way.
        p: probability.
    """

    def __init__(self, degrees: float = 10.0, p: float = 1.0):
        self.degrees, self.p = degrees, p

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        if uniform(generator) >= self.p:
            return clip
        return rotate(clip, uniform(generator, -self.degrees, self.degrees))


def rotate(clip: Array, degrees: float) -> Array:
    """Turn uint8 (..., H, W) about the middle, counter-clockwise; edges are continued outwards."""
    planes = _planes(clip)
    height, width = planes.shape[1:]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    count = len(planes)
    turned = np.empty((count + -count % _CHANNELS, height, width), dtype=np.uint8)
    # Measured on 75 frames of 96x96: four as the channels of one picture 0.7 ms, one by one 1.7,
    # remap with maps of the clip's 1.9, frames one above another with such maps 3. The last ones
    # are not turned alone: OpenCV rounds one channel differently.
    for start in range(0, count, _CHANNELS):
        some = [planes[min(i, count - 1)] for i in range(start, start + _CHANNELS)]
        picture = cv2.warpAffine(
            cv2.merge(some), matrix, (width, height), borderMode=cv2.BORDER_REPLICATE
        )
        cv2.split(picture, list(turned[start : start + _CHANNELS]))  # into these
    return like(clip, turned[:count].reshape(clip.shape))


class ColorJitter(ClipTransform):
    """Contrast, brightness and gamma changed in the whole clip, grey or colour, in this order.

    Contrast c keeps the clip's mean m: v becomes m + c (v - m). Brightness b: v becomes b v. Then
    v, from 0 to 255, becomes 255 (v / 255)^g. All three are one table of 256 entries. Contrast and
    brightness are uniform in 1 -/+ their argument; log g is uniform, so that a clip is as likely
    made darker as brighter.

    Args:
        brightness: how far its factor is from 1 at most, 0..1; 0 for none.
        contrast: as for brightness.
        gamma: its exponent is between 1 / (1 + gamma) and 1 + gamma; 0 for none.
        p: probability.
    """

    def __init__(
        self, brightness: float = 0.2, contrast: float = 0.2, gamma: float = 0.2, p: float = 1.0
    ):
        if not (0.0 <= brightness <= 1.0 and 0.0 <= contrast <= 1.0 and gamma >= 0.0):
            raise ValueError(
                f"brightness {brightness} and contrast {contrast} must be in 0..1, gamma {gamma} "
                "at least 0"
            )
        self.brightness, self.contrast, self.gamma, self.p = brightness, contrast, gamma, p

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        if uniform(generator) >= self.p:
            return clip
        contrast = uniform(generator, 1.0 - self.contrast, 1.0 + self.contrast)
        brightness = uniform(generator, 1.0 - self.brightness, 1.0 + self.brightness)
        limit = math.log1p(self.gamma)
        return change_color(clip, brightness, contrast, math.exp(uniform(generator, -limit, limit)))


def change_color(
    clip: Array, brightness: float = 1.0, contrast: float = 1.0, gamma: float = 1.0
) -> Array:
    """Apply two factors and an exponent to uint8 (..., H, W) as `ColorJitter` does."""
    planes = _planes(clip)
    if planes.size == 0:
        return clip
    rows = planes.reshape(-1, planes.shape[-1])
    mean = cv2.mean(rows)[0]
    value = (mean + contrast * (np.arange(256.0) - mean)) * brightness
    value = 255.0 * (value.clip(0.0, 255.0) / 255.0) ** gamma
    table = np.rint(value).astype(np.uint8)
    return like(clip, cv2.LUT(rows, table).reshape(clip.shape))


class Cutout(ClipTransform):
    """Squares of the picture masked in the whole clip (DeVries and Taylor 2017, arXiv:1708.04552).

    As there a square's middle is anywhere in the picture, so that some of it may be outside. Its
    side is uniform from 1 to `size`.

    Args:
        size: longest side, pixels.
        count: how many squares.
        fill: "mean", of the clip (of each colour), or "zero".
        p: probability.
    """

    def __init__(
        self, size: int = 32, count: int = 1, fill: Literal["mean", "zero"] = "mean", p: float = 0.5
    ):
        if size < 1 or count < 0:
            raise ValueError(f"size {size} must be 1 or more, count {count} 0 or more")
        self.size, self.count, self.fill, self.p = size, count, fill, p

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        if self.count == 0 or uniform(generator) >= self.p:
            return clip
        masked, (height, width) = _copied(clip), clip.shape[-2:]
        value = _mean_color(clip) if self.fill == "mean" else 0
        for _ in range(self.count):
            side = 1 + integer(self.size, generator)
            top = integer(height, generator) - side // 2
            left = integer(width, generator) - side // 2
            rows, columns = slice(max(0, top), top + side), slice(max(0, left), left + side)
            masked[..., rows, columns] = value
        return masked


class AdaptiveTimeMask(ClipTransform):
    """Stretches of time masked, as many as the clip is long (Ma et al. 2022, arXiv:2202.13084).

    There, and in auto_avsr: one mask for each second begun, each up to 0.4 s, at any place. They
    may overlap. Serves video (rate 25) and sound (rate 16000) alike.

    Args:
        max_seconds: longest mask; lengths are uniform from 0 to it.
        masks_per_second: how many; rounded up for the clip.
        rate: frames or samples per second.
        fill: "mean", the clip's mean frame as in the paper, or "zero" as in auto_avsr.
    """

    def __init__(
        self,
        max_seconds: float = 0.4,
        masks_per_second: float = 1.0,
        rate: float = 25.0,
        fill: Literal["mean", "zero"] = "mean",
    ):
        self.max_seconds, self.masks_per_second = max_seconds, masks_per_second
        self.rate, self.fill = rate, fill

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        frames = len(clip)
        longest = min(round(self.max_seconds * self.rate), frames)
        masks = int(np.ceil(frames / self.rate * self.masks_per_second - 1e-9))
        if masks == 0 or longest == 0:
            return clip
        masked, value = _copied(clip), _mean_frame(clip) if self.fill == "mean" else 0
        for _ in range(masks):
            length = integer(longest + 1, generator)
            start = integer(frames - length + 1, generator)
            masked[start : start + length] = value
        return masked


def _copied(clip: Array) -> Array:
    return clip.clone() if isinstance(clip, Tensor) else clip.copy()


def _mean_frame(clip: Array) -> Array:
    """Return the mean over time, rounded where the clip holds integers."""
    array = np.asarray(clip)
    if array.dtype == np.uint8:  # the sum is exact, and OpenCV's takes a third of numpy's time
        rows = np.ascontiguousarray(array).reshape(len(array), -1)
        total = cv2.reduce(rows, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        mean = np.rint(total[0] / len(array)).reshape(array.shape[1:])
    else:
        mean = array.mean(0, dtype=np.float64)
        if np.issubdtype(array.dtype, np.integer):
            mean = np.rint(mean)
    return like(clip, np.asarray(mean.astype(array.dtype)))


def _mean_color(clip: Array) -> Array | int:
    """Return the mean over time and the picture: one number of grey clips, (3, 1, 1) of colours."""
    array = np.asarray(clip)
    if array.ndim == 3:
        return round(cv2.mean(_planes(clip).reshape(-1, array.shape[-1]))[0])
    mean = np.rint(array.mean((0, 2, 3), keepdims=True)[0]).astype(array.dtype)
    return like(clip, mean)


def _planes(clip: Array) -> np.ndarray:
    """Return the pictures of a clip, colours apart: uint8 (n, H, W), contiguous."""
    array = np.asarray(clip)
    if array.dtype != np.uint8:
        raise TypeError(f"crops are uint8, from the store to the batch, not {array.dtype}")
    return np.ascontiguousarray(array).reshape(-1, *array.shape[-2:])
