"""Speed perturbation, of sound and of lips alike."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from speechattn.data.augment.base import Array, ClipTransform, integer, uniforms

_SPEED_STEPS = 1000  # speed factors are thousandths, which keeps the resampling filters short


class SpeedPerturb(ClipTransform):
    """Tempo and pitch changed together by resampling (Ko et al., Interspeech 2015).

    As a transform it changes sound. `SpeechDataset` draws with `draws`, so that the lengths of all
    utterances of an epoch are known before any is loaded, and batches of similar lengths are made
    of those: speeds drawn later would pad each batch by another tenth. It then changes sound with
    `speed_audio` and lips with `speed_video`.

    Args:
        factors: equally likely; above 1 is faster and shorter.
    """

    def __init__(self, factors: Sequence[float] = (0.9, 1.0, 1.1)):
        self.factors = tuple(factors)

    def draws(self, hashes: np.ndarray, *keys: int | str) -> np.ndarray:
        """Draw a factor for each clip, (M,) float64; see `uniforms`."""
        chosen = uniforms(hashes, *keys) * len(self.factors)
        return np.array(self.factors)[chosen.astype(np.int64)]

    def draw(self, generator: torch.Generator) -> float:
        """Draw one of the factors."""
        return self.factors[integer(len(self.factors), generator)]

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        return speed_audio(clip, self.draw(generator))


def speed_audio(samples: Array, factor: float) -> Array:
    """Play sound `factor` times as fast, by band-limited resampling (that of torchaudio).

    From float (N,) to (ceil(N / factor),); a factor of 1.1 is a tenth faster. Steps are 0.001.
    """
    steps = _speed_steps(factor)
    if steps == _SPEED_STEPS:
        return samples
    signal = samples if isinstance(samples, Tensor) else torch.from_numpy(np.array(samples))
    faster = _resampler(steps)(signal.float()).to(signal.dtype)
    return faster if isinstance(samples, Tensor) else faster.numpy()


@lru_cache(maxsize=64)
def _resampler(steps: int) -> Callable[[Tensor], Tensor]:
    from lhotse.augmentation.resample import Resample  # seconds, which recognition does not need

    return Resample(steps, _SPEED_STEPS)


def speed_video(frames: Array, factor: float) -> Array:
    """Play video `factor` times as fast: the time axis resampled to the nearest frame.

    Frame i shows what the source shows in the middle of its time, so sound and lips stay together.
    From (T, ...) to (max(1, round(T / factor)), ...), of the same type; as for `speed_audio`.
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
