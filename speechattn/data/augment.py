"""Augmentation of clips: lips and sound; `SpecAugment`, of features, has its own file.

Every transform draws from the `torch.Generator` that it is given and from nothing else, so a seed
decides all. `clip_generator(seed, epoch, cut_id)` makes one whose draws do not depend on which
worker, or how many of them, load the clip.

Video is uint8 (T, H, W), sound is float (N,) at 16 kHz; both may be numpy arrays or tensors, and
what comes back is of the same kind and is never the same memory changed.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from lhotse.augmentation.resample import Resample
from torch import Tensor

from speechattn.data.specaugment import SpecAugment
from speechattn.data.video import read_audio

__all__ = [
    "AdaptiveTimeMask",
    "AddNoise",
    "CenterCrop",
    "ClipTransform",
    "HorizontalFlip",
    "RandomCrop",
    "SpecAugment",
    "SpeedPerturb",
    "clip_generator",
    "speed_audio",
    "speed_video",
]

Array = TypeVar("Array", np.ndarray, Tensor)
_SPEED_STEPS = 1000  # speed factors are thousandths, which keeps the resampling filters short


def clip_generator(*keys: int | str) -> torch.Generator:
    """A generator that is seeded by its keys alone, e.g. (seed, epoch, cut id)."""
    named = json.dumps([key if isinstance(key, str) else int(key) for key in keys])
    digest = hashlib.sha256(named.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _uniform(generator: torch.Generator | None) -> float:
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def _integer(high: int, generator: torch.Generator | None) -> int:
    """One of 0 .. high - 1."""
    return int(torch.randint(high, (), generator=generator))


class ClipTransform:
    """Base of the transforms of one clip: `transform(clip, generator) -> clip`."""

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        raise NotImplementedError


# ------------------------------------------------------------------------------------- video


class RandomCrop(ClipTransform):
    """A square of the picture, at a random place that is the same for the whole clip.

    Args:
        size: side in pixels; None: that of the model, which `SpeechData` fills in.
    """

    def __init__(self, size: int | None = None):
        self.size = size

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        height, width = _picture_size(clip, self.size)
        top = _integer(height - self.size + 1, generator)
        left = _integer(width - self.size + 1, generator)
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
        if _uniform(generator) >= self.p:
            return clip
        return clip.flip(-1) if isinstance(clip, Tensor) else clip[..., ::-1].copy()


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
        self.max_seconds = max_seconds
        self.masks_per_second = masks_per_second
        self.rate = rate
        self.fill = fill

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        frames = len(clip)
        longest = min(round(self.max_seconds * self.rate), frames)
        masks = int(np.ceil(frames / self.rate * self.masks_per_second - 1e-9))
        if masks == 0 or longest == 0:
            return clip
        masked = clip.clone() if isinstance(clip, Tensor) else clip.copy()
        value = _mean_frame(clip) if self.fill == "mean" else 0
        for _ in range(masks):
            length = _integer(longest + 1, generator)
            start = _integer(frames - length + 1, generator)
            masked[start : start + length] = value
        return masked


def _mean_frame(clip: Array) -> Array:
    """The mean over time, rounded where the clip holds integers."""
    if isinstance(clip, Tensor):
        mean = clip.double().mean(0)
        return (mean if clip.is_floating_point() else mean.round()).to(clip.dtype)
    mean = clip.mean(0, dtype=np.float64)
    integers = np.issubdtype(clip.dtype, np.integer)
    return (np.rint(mean) if integers else mean).astype(clip.dtype)


# ------------------------------------------------------------------------------------- sound


class AddNoise(ClipTransform):
    """Noise added at an exact signal-to-noise ratio, measured over the whole clip.

    The ratio is uniform in `snr_db`. The noise is an excerpt that starts anywhere; one shorter
    than the clip goes round. With `babble` voices, that many excerpts are added up first, which
    makes babble of plain speech. Nothing is added to a silent clip, or from a silent excerpt; the
    sum is not clipped.

    Args:
        noise: file, files, or float samples (N,) at 16 kHz. Files are read when first
            drawn; each process keeps the last 64.
        snr_db: lowest and highest ratio, dB; equal ones fix it.
        p: probability.
        babble: number of excerpts added up.
        part: only this stretch of the noise is used, from one share of its length to another, so
            that training and testing can hear different parts.
        sample_rate: of the clips and of the noise read, Hz.
    """

    def __init__(
        self,
        noise: str | Path | Sequence[str] | Sequence[Path] | np.ndarray | Tensor,
        snr_db: tuple[float, float] = (-5.0, 20.0),
        p: float = 0.5,
        babble: int = 1,
        part: tuple[float, float] = (0.0, 1.0),
        sample_rate: int = 16000,
    ):
        if not 0.0 <= part[0] < part[1] <= 1.0:
            raise ValueError(f"part {part} must rise, within 0 and 1")
        if snr_db[0] > snr_db[1] or babble < 1:
            raise ValueError(f"snr_db {snr_db} must rise, babble {babble} be 1 or more")
        self.noise = [noise] if isinstance(noise, str | Path) else noise
        self.snr_db = snr_db
        self.p = p
        self.babble = babble
        self.part = part
        self.sample_rate = sample_rate

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        if _uniform(generator) >= self.p:
            return clip
        low, high = self.snr_db
        snr = low + (high - low) * _uniform(generator)
        noise = sum(self._excerpt(len(clip), generator) for _ in range(self.babble))
        # Power in float64: the sum of squares of a minute of float32 is off by more than 0.01 dB.
        samples = np.asarray(clip, dtype=np.float64)
        power, noise_power = np.mean(samples**2), np.mean(noise**2)
        if power == 0 or noise_power == 0:
            return clip
        noisy = samples + noise * np.sqrt(power / noise_power * 10 ** (-snr / 10))
        if isinstance(clip, Tensor):
            return torch.from_numpy(noisy).to(clip)
        return noisy.astype(clip.dtype)

    def _excerpt(self, length: int, generator: torch.Generator) -> np.ndarray:
        if isinstance(self.noise, np.ndarray | Tensor):
            noise = np.asarray(self.noise)
        else:
            file = self.noise[_integer(len(self.noise), generator)]
            noise = _noise_file(file, self.sample_rate)
        low, high = (round(share * len(noise)) for share in self.part)
        noise = noise[low:high]
        start = _integer(len(noise), generator)
        return np.take(noise, np.arange(start, start + length), mode="wrap").astype(np.float64)


@lru_cache(maxsize=64)
def _noise_file(path: str | Path, sample_rate: int) -> np.ndarray:
    return read_audio(path, sample_rate)


class SpeedPerturb(ClipTransform):
    """Tempo and pitch changed together by resampling (Ko et al., Interspeech 2015).

    As a transform it changes sound. For sound and lips together draw once:
    `factor = perturb.draw(generator)`, then `speed_audio` and `speed_video` with it.

    Args:
        factors: equally likely; above 1 is faster and shorter.
    """

    def __init__(self, factors: Sequence[float] = (0.9, 1.0, 1.1)):
        self.factors = tuple(factors)

    def draw(self, generator: torch.Generator) -> float:
        """One of the factors."""
        return self.factors[_integer(len(self.factors), generator)]

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        return speed_audio(clip, self.draw(generator))


def speed_audio(samples: Array, factor: float) -> Array:
    """Sound played `factor` times as fast, by band-limited resampling (that of torchaudio).

    Args:
        samples: float (N,).
        factor: in thousandths; 1.1 is a tenth faster.

    Returns:
        (ceil(N / factor),).
    """
    steps = _speed_steps(factor)
    if steps == _SPEED_STEPS:
        return samples
    signal = samples if isinstance(samples, Tensor) else torch.from_numpy(np.array(samples))
    faster = _resampler(steps)(signal.float()).to(signal.dtype)
    return faster if isinstance(samples, Tensor) else faster.numpy()


@lru_cache(maxsize=64)
def _resampler(steps: int) -> Resample:
    return Resample(steps, _SPEED_STEPS)


def speed_video(frames: Array, factor: float) -> Array:
    """Video played `factor` times as fast: the time axis resampled to the nearest frame.

    Frame i shows what the source shows in the middle of its time, so sound and lips stay together.

    Args:
        frames: (T, ...).
        factor: as for `speed_audio`.

    Returns:
        (max(1, round(T / factor)), ...), of the same type.
    """
    steps = _speed_steps(factor)
    if steps == _SPEED_STEPS or len(frames) == 0:
        return frames
    # In integers: 1.1 has no exact float, and a frame would depend on its rounding.
    total = max(1, (2 * len(frames) * _SPEED_STEPS + steps) // (2 * steps))
    index = (2 * np.arange(total) + 1) * steps // (2 * _SPEED_STEPS)
    return frames[np.minimum(index, len(frames) - 1)]


def _speed_steps(factor: float) -> int:
    steps = round(factor * _SPEED_STEPS)
    if steps <= 0:
        raise ValueError(f"speed factor {factor} must be positive")
    return steps
