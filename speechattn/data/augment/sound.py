"""Transforms of sound."""

from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechattn.data.augment.base import Array, ClipTransform, integer, uniform
from speechattn.data.media import read_audio


class AddNoise(ClipTransform):
    """Noise added at an exact signal-to-noise ratio, measured over the whole clip.

    The ratio is uniform in `snr_db`. The noise is an excerpt that starts anywhere; one shorter
    than the clip goes round. With `babble` voices, that many excerpts are added up first, which
    makes babble of plain speech. Nothing is added to a silent clip, or from a silent excerpt; the
    sum is not clipped.

    Args:
        noise: file, files, or float samples (N,) at 16 kHz. Files are read when first
            drawn; each process keeps the last 64. None for the `data.noise` of a configuration.
        snr_db: lowest and highest ratio, dB; equal ones fix it.
        p: probability.
        babble: number of excerpts added up.
        part: only this stretch of the noise is used, from one share of its length to another, so
            that training and testing can take different parts.
        sample_rate: of the clips and of the noise read, Hz.
    """

    def __init__(
        self,
        noise: str | Path | Sequence[str] | Sequence[Path] | np.ndarray | Tensor | None = None,
        snr_db: tuple[float, float] = (-5.0, 20.0),
        p: float = 0.5,
        *,
        babble: int = 1,
        part: tuple[float, float] = (0.0, 1.0),
        sample_rate: int = 16000,
    ):
        if not 0.0 <= part[0] < part[1] <= 1.0:
            raise ValueError(f"part {part} must rise, within 0 and 1")
        if snr_db[0] > snr_db[1] or babble < 1:
            raise ValueError(f"snr_db {snr_db} must rise, babble {babble} be 1 or more")
        self.noise = [noise] if isinstance(noise, str | Path) else noise
        self.snr_db, self.p, self.babble = snr_db, p, babble
        self.part, self.sample_rate = part, sample_rate

    def mixing(self, noise: str | Path) -> "AddNoise":
        """Return the same with another file."""
        copied = copy(self)
        copied.noise = [noise]
        return copied

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        if uniform(generator) >= self.p:
            return clip
        snr = uniform(generator, *self.snr_db)
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
            file = self.noise[integer(len(self.noise), generator)]
            noise = _noise_file(file, self.sample_rate)
        low, high = (round(share * len(noise)) for share in self.part)
        noise = noise[low:high]
        start = integer(len(noise), generator)
        return np.take(noise, np.arange(start, start + length), mode="wrap").astype(np.float64)


@lru_cache(maxsize=64)
def _noise_file(path: str | Path, sample_rate: int) -> np.ndarray:
    return read_audio(path, sample_rate)
