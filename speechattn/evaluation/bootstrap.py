"""Confidence intervals of error rates by the bootstrap.

Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation",
ICASSP 2004: resample the test set with replacement, compute the error rate (a ratio of sums) of
every replicate, report percentiles. Errors of one speaker are not independent, so speakers rather
than utterances are resampled where there are enough of them (Liu et al., "Statistical testing on
ASR performance via blockwise bootstrap", Interspeech 2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

MIN_SPEAKERS = 10
# Draws held at once: 4 M int64 are 32 MB.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class BootstrapOptions:
    """Options of the interval.

    Args:
        replications: number of resampled test sets; 0 computes no interval.
        level: coverage of the interval, in (0, 1).
        seed: of the resampling.
        blocks: what is resampled. ``auto``: speakers if there are at least 10, else utterances.
    """

    replications: int = 10_000
    level: float = 0.95
    seed: int = 0
    blocks: Literal["auto", "utterance", "speaker"] = "auto"


def error_rate_interval(
    errors: np.ndarray,
    lengths: np.ndarray,
    options: BootstrapOptions | None = None,
    blocks: Sequence[str] | None = None,
) -> tuple[float, float] | None:
    """Return the percentile interval of ``sum(errors) / sum(lengths)``.

    Args:
        errors, lengths: (B,) errors and reference length of each utterance.
        options: its `blocks` is for the caller.
        blocks: (B,) labels; utterances of one label are drawn together. None draws utterances.

    Returns:
        Low and high end as fractions; None without replications, utterances or references.
    """
    options = options or BootstrapOptions()
    if not 0 < options.level < 1:
        raise ValueError(f"level must lie in (0, 1), not {options.level}")
    errors = np.asarray(errors, dtype=np.float64)
    lengths = np.asarray(lengths, dtype=np.float64)
    if blocks is not None:
        _, index = np.unique(np.asarray(blocks), return_inverse=True)
        errors = np.bincount(index, weights=errors)
        lengths = np.bincount(index, weights=lengths)
    count = len(errors)
    if count == 0 or options.replications < 1:
        return None
    generator = np.random.default_rng(options.seed)
    rates = []
    step = max(1, _CHUNK // count)
    for start in range(0, options.replications, step):
        rows = min(step, options.replications - start)
        drawn = generator.integers(count, size=(rows, count))
        total = lengths[drawn].sum(axis=1)
        # A replicate that drew only empty references has no error rate.
        rates.append(errors[drawn].sum(axis=1)[total > 0] / total[total > 0])
    rates = np.concatenate(rates)
    if not len(rates):
        return None
    tail = (1 - options.level) / 2
    low, high = np.quantile(rates, [tail, 1 - tail])
    return float(low), float(high)
