"""Choice of ROVER's options and weights by the error rate on development sets."""

import logging
from collections.abc import Sequence

import numpy as np
from kaldialign import edit_distance

from speechattn.errors import SpeechattnError
from speechattn.evaluation.fusion.rover import Alternatives, RoverOptions, Unit, Voting, align_all

logger = logging.getLogger(__name__)

VOTINGS: tuple[Voting, ...] = ("frequency", "average", "maximum")  # the paper's
ALPHAS = tuple(round(0.1 * i, 1) for i in range(10))  # 1 is voting by frequency
NULL_CONFIDENCES = (*(round(0.1 * i, 1) for i in range(10)), 0.95, 1.0)  # CTC's are often so high
WEIGHTS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # times the mean of the other systems'
ROUNDS = 5


class DevSet:
    """The outputs of M systems for B utterances with references.

    Args:
        names: (M,) names of the outputs.
        transcripts: (M, B); None where a system has none.
        references: (B,) keys of each utterance's units.
    """

    def __init__(
        self,
        names: Sequence[str],
        transcripts: Sequence[Sequence[list[Unit] | None]],
        references: Sequence[list[str]],
    ):
        self.names, self.transcripts, self.references = names, transcripts, references
        self.length = sum(map(len, references))
        if not self.length:
            raise SpeechattnError(f"{names[0]}: the references are empty")
        self.alternatives = align_utterances(list(zip(*transcripts, strict=True)))
        self._errors: list[dict[bytes, int]] = [{} for _ in references]  # by winners, a cache

    @property
    def single_rates(self) -> list[float]:
        """Return each system's own error rate, percent; missing utterances count as deletions."""
        rates = []
        for system in self.transcripts:
            keys = ([u.key for u in units or []] for units in system)
            pairs = zip(self.references, keys, strict=True)
            errors = sum(edit_distance(*pair)["total"] for pair in pairs)
            rates.append(100 * errors / self.length)
        return rates

    def ordered(self, order: Sequence[int]) -> "DevSet":
        """Return the same set with the systems in another order."""
        transcripts = [self.transcripts[s] for s in order]
        return DevSet([self.names[s] for s in order], transcripts, self.references)

    def rate(self, options: RoverOptions, weights: np.ndarray) -> float:
        """Return the error rate of the fused transcripts, percent."""
        alternatives = self.alternatives
        winners = alternatives.winners(alternatives.scores(options, weights))
        errors = 0
        for b, reference in enumerate(self.references):
            chosen = winners[alternatives.ends[b] : alternatives.ends[b + 1]]
            cache, key = self._errors[b], chosen.tobytes()
            if key not in cache:
                keys = [u.key for u in (alternatives.units[a] for a in chosen) if u is not None]
                cache[key] = edit_distance(reference, keys)["total"]
            errors += cache[key]
        return 100 * errors / self.length


def align_utterances(utterances: Sequence[Sequence[list[Unit] | None]]) -> Alternatives:
    """Align the transcripts (B, M) of each utterance; None where a system has none."""
    present = [[t is not None for t in transcripts] for transcripts in utterances]
    return Alternatives([align_all(each) for each in utterances], len(utterances[0]), present)


def mean_rate(sets: Sequence[DevSet], options: RoverOptions, weights: np.ndarray) -> float:
    """Return the mean error rate of several development sets, percent."""
    return sum(one.rate(options, weights) for one in sets) / len(sets)


def choose_options(
    sets: Sequence[DevSet],
    weights: np.ndarray,
    *,
    voting: Voting | None = None,
    alpha: float | None = None,
    null_confidence: float | None = None,
) -> RoverOptions:
    """Search a grid for the options of the lowest error rate.

    With hundreds of points and a small development set the best point may be luck: a point counts
    with the mean of itself and its neighbors. Of equal ones the first voting is taken, and in its
    grid the point nearest to the center of the equal ones.

    Args:
        sets: development sets of the same systems in the same order.
        weights: (M,).
        voting, alpha, null_confidence: fixed unless None; `avgconf` is tried only if asked for.
    """
    votings = VOTINGS if voting is None else (voting,)
    if voting is None and (alpha is not None or null_confidence is not None):
        votings = VOTINGS[1:]  # frequency uses neither
    alphas = ALPHAS if alpha is None else (alpha,)
    nulls = NULL_CONFIDENCES if null_confidence is None else (null_confidence,)
    best, options = np.inf, RoverOptions()
    for kind in votings:
        if kind == "frequency":
            best = mean_rate(sets, options, weights)
            continue
        rates = np.empty((len(alphas), len(nulls)))
        for i, j in np.ndindex(rates.shape):
            rates[i, j] = mean_rate(sets, RoverOptions(kind, alphas[i], nulls[j]), weights)
        rates = with_neighbours(rates)
        if rates.min() < best - 1e-9:
            best = rates.min()
            equal = np.argwhere(rates <= best + 1e-9)
            i, j = equal[np.square(equal - equal.mean(0)).sum(1).argmin()]
            options = RoverOptions(kind, alphas[i], nulls[j])
    logger.info("%s: %.2f %% errors on the development sets, mean over neighbors", options, best)
    return options


def with_neighbours(grid: np.ndarray) -> np.ndarray:
    """Return the mean of each point of a grid and its 8 neighbors; edges are repeated."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(grid, 1, mode="edge"), (3, 3))
    return around.mean((-1, -2))


def choose_weights(
    sets: Sequence[DevSet], weights: np.ndarray, options: RoverOptions
) -> np.ndarray:
    """Change one of the weights (M,) at a time as long as errors become fewer.

    Returns:
        (M,) weights whose mean is 1.
    """
    weights = weights / weights.mean()
    best = mean_rate(sets, options, weights)
    for _ in range(ROUNDS):
        before = best
        for s in range(len(weights)):
            others = (weights.sum() - weights[s]) / max(1, len(weights) - 1)
            for factor in WEIGHTS:
                tried = weights.copy()
                tried[s] = factor * others
                rate = mean_rate(sets, options, tried) if others else best
                if rate < best - 1e-9:
                    best, weights = rate, tried
        if best == before:
            break
    weights = weights / weights.mean()
    logger.info("weights %s: %.2f %%", ", ".join(f"{w:.3g}" for w in weights), best)
    return weights
