"""Ragged transducer batches drawn by NumPy: the same numbers in every environment."""

from dataclasses import dataclass

import numpy as np

CASES = 200
_PENALTIES = (0.0, 0.01, 0.1)
_TOPOLOGIES = ("regular", "regular", "modified", "constrained")
# Of the predictor alone and of the encoder alone.
_SCALES = ((0.0, 0.0), (0.25, 0.0), (0.25, 0.1), (0.0, 0.3), (0.5, 0.5))
_UNITS = (4, 9, 30)


@dataclass
class Case:
    """A batch of four or five items, the second without tokens, the third with few frames.

    Attributes:
        am: (B, T, V) float32 scores of the encoder.
        lm: (B, U + 1, V) of the predictor.
        full: (B, T, U + 1, V) of a joiner.
        kept: (B, T, s, V) of a joiner that scores s columns a frame.
        lengths: (B,) frames.
        tokens: (B, U), none of them 0.
        token_lengths: (B,).
        weights: (B, T, U + 1, V) that gradients are summed with, or as many of them as there are.
        lm_only_scale: of `lm` alone.
        am_only_scale: of `am` alone.
        delay_penalty: per frame.
        topology: as k2's rnnt_type.
    """

    am: np.ndarray
    lm: np.ndarray
    full: np.ndarray
    kept: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray
    token_lengths: np.ndarray
    weights: np.ndarray
    lm_only_scale: float
    am_only_scale: float
    delay_penalty: float
    topology: str


def case(seed: int) -> Case:
    """One of CASES. k2 wants at least one token, and no fewer frames than tokens, in a batch."""
    draw = np.random.Generator(np.random.PCG64(seed))
    units, topology = _UNITS[seed % 3], _TOPOLOGIES[seed % 4]
    batch, count = int(draw.integers(4, 6)), int(draw.integers(1, 11))
    frames = int(draw.integers(max(count, 4), 25))
    width = min(int(draw.integers(2, 7)), count + 1)
    lengths = draw.integers(1, frames + 1, batch)
    token_lengths = draw.integers(0, count + 1, batch)
    lengths[0], token_lengths[0], token_lengths[1] = frames, count, 0
    lengths[2], token_lengths[2] = (count + 1) // 2, count  # more tokens than frames
    lm_only, am_only = _SCALES[seed % 5]
    spread = (0.5, 2.0, 5.0)[seed // 3 % 3]

    def scores(*shape: int) -> np.ndarray:
        return (spread * draw.standard_normal((batch, *shape, units))).astype(np.float32)

    return Case(
        am=scores(frames),
        lm=scores(count + 1),
        full=scores(frames, count + 1),
        kept=scores(frames, width),
        lengths=lengths,
        tokens=draw.integers(1, units, (batch, count)),
        token_lengths=token_lengths,
        weights=scores(frames, count + 1),
        lm_only_scale=lm_only,
        am_only_scale=am_only,
        delay_penalty=_PENALTIES[seed // 2 % 3],
        topology=topology,
    )


def occupied(c: Case) -> tuple[np.ndarray, np.ndarray]:
    """What could be occupations of tokens and blanks, no two alike: px and py as k2 has them."""
    px, py = (np.abs(c.weights[..., unit]).transpose(0, 2, 1) for unit in (1, 0))
    last = c.topology == "regular"
    return np.pad(px[:, :-1], ((0, 0), (0, 0), (0, int(last)))), py.copy()


def summed(weights: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """(B,) of a gradient (B, ...), each of its numbers with a weight of its own."""
    gradient = gradient.astype(np.float64).reshape(len(gradient), -1)
    weights = weights.reshape(len(weights), -1)[:, : gradient.shape[1]]
    return (gradient * weights).sum(1)
