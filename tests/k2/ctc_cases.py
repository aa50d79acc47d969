"""Ragged CTC batches drawn by NumPy: the same numbers in every environment."""

from dataclasses import dataclass

import numpy as np

CASES = 200
_PENALTIES = (0.0, 0.001, 0.01, 0.03, 0.1)
_UNITS = (5, 12, 60, 500)


@dataclass
class Case:
    """A batch of four to six items.

    Attributes:
        logits: (B, T, V) float32.
        lengths: (B,) frames, the longest first as k2 wants them.
        texts: the tokens of each item, none of them 0.
        weights: (B, T, V) float32 that the gradient is summed with.
        delay_penalty: per frame.
        modified: the topology.
    """

    logits: np.ndarray
    lengths: np.ndarray
    texts: list[list[int]]
    weights: np.ndarray
    delay_penalty: float
    modified: bool


def case(seed: int) -> Case:
    """One of CASES: an empty text, one with repeats, one that does not fit, and others."""
    draw = np.random.Generator(np.random.PCG64(seed))
    units = _UNITS[seed % len(_UNITS)]
    batch, frames = int(draw.integers(4, 7)), int(draw.integers(8, 48))
    spread = (0.5, 2.0, 6.0)[seed % 3]
    logits = (spread * draw.standard_normal((batch, frames, units))).astype(np.float32)
    lengths = np.sort(draw.integers(frames // 2, frames + 1, batch))[::-1].copy()
    lengths[0] = frames
    texts = []
    for b, length in enumerate(lengths.tolist()):
        several = int(draw.integers(1, length // 2 + 1))
        if b == 1:
            texts.append([])
        elif b == 2:  # repeats, which may be one too many for the frames
            texts.append(draw.integers(1, 3, several).tolist())
        elif b == 3:
            texts.append(draw.integers(1, units, length + 1 - seed % 2).tolist())
        else:
            texts.append(draw.integers(1, units, several).tolist())
    weights = draw.standard_normal(logits.shape).astype(np.float32)
    return Case(
        logits, lengths, texts, weights, _PENALTIES[seed % len(_PENALTIES)], seed // 2 % 2 == 1
    )
