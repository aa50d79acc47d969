"""The interface of transforms, and the source of their random draws."""

import hashlib
import json
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)


class ClipTransform:
    """Base of the transforms of one clip: `transform(clip, generator) -> clip`."""

    def __call__(self, clip: Array, generator: torch.Generator) -> Array:
        raise NotImplementedError


def clip_generator(*keys: int | str) -> torch.Generator:
    """Make a generator that is seeded by its keys alone, e.g. (seed, epoch, cut id)."""
    return torch.Generator().manual_seed(_number(keys) >> 1)


def uniforms(hashes: np.ndarray, *keys: int | str) -> np.ndarray:
    """Draw for many clips at once, each a function of its hash and the keys alone.

    What a million clips of an epoch draw is known in milliseconds, where a generator for each
    would take a minute. The mixing is that of SplitMix64 (Steele et al., OOPSLA 2014).

    Args:
        hashes: (M,) uint64, well mixed, such as `cut_table.id_hash`.
        keys: e.g. (seed, epoch).

    Returns:
        (M,) float64 in [0, 1).
    """
    x = hashes ^ np.uint64(_number(keys))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)) * 2.0**-53


def _number(keys: tuple[int | str, ...]) -> int:
    """Hash keys to 64 bits."""
    named = json.dumps([key if isinstance(key, str) else int(key) for key in keys])
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], "big")


def uniform(generator: torch.Generator | None, low: float = 0.0, high: float = 1.0) -> float:
    """Draw from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def integer(high: int, generator: torch.Generator | None) -> int:
    """Draw one of 0 .. high - 1."""
    return int(torch.randint(high, (), generator=generator))


def like(clip: Array, result: np.ndarray) -> Array:
    """Return a result as a tensor if the clip was one."""
    return torch.from_numpy(result) if isinstance(clip, Tensor) else result
