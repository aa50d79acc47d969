"""Choice of ROVER's options and weights on development sets, by error rate."""

import logging
from collections.abc import Sequence

import numpy as np
from kaldialign import edit_distance

from speechattn.errors import SpeechattnError
from speechattn.evaluation.fusion.rover import (
    VOTINGS,
    Ballot,
    RoverOptions,
    Unit,
    Voting,
    align_all,
)

logger = logging.getLogger(__name__)

ALPHAS = tuple(round(0.1 * i, 1) for i in range(10))  # 1 would be voting by frequency
NULL_CONFIDENCES = (*(round(0.1 * i, 1) for i in range(10)), 0.95, 1.0)  # CTC is often that sure
WEIGHTS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # times what the others have on average
ROUNDS = 5


class DevSet:
    """The outputs of M systems for N utterances with references.

    Args:
        names: of the systems' outputs, M.
        transcripts: by system and utterance; None where a system has none.
        references: keys of the units of each utterance.
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
            raise SpeechattnError(f"{names[0]}: references without a single unit")
        self.ballot = make_ballot(list(zip(*transcripts, strict=True)))
        self.found: list[dict[bytes, int]] = [{} for _ in references]  # errors by winners

    @property
    def single_rates(self) -> list[float]:
        """The error rate of each system alone, percent; what it lacks is deleted."""
        return [
            100
            * sum(
                edit_distance(reference, [u.key for u in units or []])["total"]
                for reference, units in zip(self.references, system, strict=True)
            )
            / self.length
            for system in self.transcripts
        ]

    def ordered(self, order: Sequence[int]) -> "DevSet":
        """The same with the systems in another order."""
        return DevSet(
            [self.names[s] for s in order], [self.transcripts[s] for s in order], self.references
        )

    def rate(self, options: RoverOptions, weights: np.ndarray) -> float:
        """The error rate of the fused transcripts, percent."""
        ballot = self.ballot
        winners = ballot.winners(ballot.scores(options, weights))
        errors = 0
        for n, reference in enumerate(self.references):
            chosen = winners[ballot.ends[n] : ballot.ends[n + 1]]
            seen, key = self.found[n], chosen.tobytes()
            if key not in seen:
                keys = [u.key for u in (ballot.units[a] for a in chosen) if u is not None]
                seen[key] = edit_distance(reference, keys)["total"]
            errors += seen[key]
        return 100 * errors / self.length


def make_ballot(utterances: Sequence[Sequence[list[Unit] | None]]) -> Ballot:
    """Align each utterance's transcripts; None where a system has none."""
    return Ballot(
        [align_all(transcripts) for transcripts in utterances],
        len(utterances[0]),
        [[t is not None for t in transcripts] for transcripts in utterances],
    )


def mean_rate(sets: Sequence[DevSet], options: RoverOptions, weights: np.ndarray) -> float:
    """The error rate over several development sets, each with the same say; percent."""
    return sum(one.rate(options, weights) for one in sets) / len(sets)


def choose_options(
    sets: Sequence[DevSet],
    weights: np.ndarray,
    voting: Voting | None = None,
    alpha: float | None = None,
    null_confidence: float | None = None,
) -> RoverOptions:
    """The options of the lowest error rate, out of a grid; what is given stays.

    A development set is small and the grid has hundreds of points, of which one may be the best by
    luck: a point counts with the mean of itself and its neighbours. Of equally good ones, voting by
    frequency is taken; else the first voting, and in its grid the point nearest to the centre of
    those that are equally good.

    Args:
        sets: development sets of the same systems in the same order.
        weights: (M,).
        voting, alpha, null_confidence: fixed where given.
    """
    votings = VOTINGS if voting is None else (voting,)
    if voting is None and (alpha is not None or null_confidence is not None):
        votings = VOTINGS[1:]  # by frequency these would have no effect
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
    logger.info("%s: %.2f %% errors around there on the development data", options, best)
    return options


def with_neighbours(grid: np.ndarray) -> np.ndarray:
    """The mean of each point of a grid and those around it, 9 in all; edges stand twice."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(grid, 1, mode="edge"), (3, 3))
    return around.mean((-1, -2))


def choose_weights(
    sets: Sequence[DevSet], weights: np.ndarray, options: RoverOptions
) -> np.ndarray:
    """Change one weight at a time as long as there are fewer errors.

    Args:
        sets: development sets of the same systems in the same order.
        weights: (M,), where to start.
        options: how columns are voted on.

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
