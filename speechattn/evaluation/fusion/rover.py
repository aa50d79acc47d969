"""ROVER: one transcript out of several systems', unit by unit, by vote.

Fiscus, "A post-processing system to yield reduced word error rates: Recognizer Output Voting Error
Reduction (ROVER)", ASRU 1997. Here M systems, C columns, A alternatives (what can win a column).

1. Alignment. The first system's transcript is a network of one column a unit. Each further
   transcript, in the order given, is aligned to the network so far, at the cost of NIST's scoring:
   4 for a unit that nobody in the column says, 3 for a unit without a column and for a column
   without a unit; saying nothing where a system before did too is free. A transcript's cost is thus
   its distance from the nearest path through the network. (NIST's tool never puts a unit on a
   column's null arc, which gives two columns to two systems' different insertions at one place;
   here they share one.) Of alignments of the same cost that with most agreement between pairs of
   systems is taken; where that leaves several, a unit shares a column as late as it can.
2. Vote. An alternative is what one or more systems say in a column, or the null arc: nothing. Its
   score is ``alpha * F + (1 - alpha) * C``, where F is the share of the systems' weights that say
   it, and C their confidence, averaged with their weights or the highest; for the null arc C is a
   constant. The highest score wins. Among equal ones the alternative wins that the earliest of the
   systems says.

So the order of systems matters in two places, both in favour of the first: put the best one there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from speechattn.errors import ConfigError

Voting = Literal["frequency", "average", "maximum"]
VOTINGS: tuple[Voting, ...] = ("frequency", "average", "maximum")

SUBSTITUTION, GAP = 4, 3  # as NIST's sclite and rover
EQUAL = 1e-9  # scores nearer than this are equal: they are sums of a few weights

SHARE, SKIP, NEW = 0, 1, 2  # unit in a column; column without unit; unit without column


@dataclass(frozen=True)
class RoverOptions:
    """How a column's winner is found.

    Args:
        voting: `frequency` counts votes only, whatever `alpha` is; `average` and `maximum` are how
            the confidences of the systems that agree become one.
        alpha: share of the votes in a score, the rest is the confidence's, 0..1.
        null_confidence: confidence of saying nothing, 0..1.
    """

    voting: Voting = "frequency"
    alpha: float = 0.5
    null_confidence: float = 0.5

    def __post_init__(self):
        if self.voting not in VOTINGS:
            raise ConfigError(f"voting: one of {', '.join(VOTINGS)}, not {self.voting!r}")
        for name in ("alpha", "null_confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: 0 to 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Unit:
    """A word or a character of one system's transcript.

    Args:
        key: what is compared.
        text: as this system writes it.
        confidence: 0..1.
    """

    key: str
    text: str
    confidence: float


Column = tuple[Unit | None, ...]
"""What each system says at one place; None for nothing."""


def rover(
    transcripts: Sequence[Sequence[Unit]],
    options: RoverOptions | None = None,
    weights: Sequence[float] | None = None,
) -> list[Unit]:
    """Fuse M transcripts of one utterance.

    Args:
        transcripts: the base first.
        options: how columns are voted on.
        weights: of the systems, positive; equal by default.

    Returns:
        The winners, as written by the first of the systems that say them; their confidence is the
        score that they won with.
    """
    ballot = Ballot([align_all(transcripts)], len(transcripts))
    return ballot.elect(options or RoverOptions(), check_weights(weights, len(transcripts)))[0]


def check_weights(weights: Sequence[float] | None, count: int) -> np.ndarray:
    """Weights as (M,) float64, ones by default; refuses what is not positive."""
    if weights is None:
        return np.ones(count)
    checked = np.asarray(weights, dtype=np.float64)
    if checked.shape != (count,):
        raise ConfigError(f"{len(weights)} weights for {count} systems")
    if not (np.isfinite(checked).all() and (checked > 0).all()):
        raise ConfigError(
            f"weights must be above 0, not {', '.join(f'{w:g}' for w in checked)}; "
            "leave a system out to give it none"
        )
    return checked


def align_all(transcripts: Sequence[Sequence[Unit] | None]) -> list[Column]:
    """The network of several transcripts: C columns of M entries each.

    A system without a transcript (None, unlike an empty one) has nothing anywhere and does not
    count for or against null arcs.
    """
    network: list[list[Unit | None]] = []
    before: list[int] = []  # systems in the network so far
    for system, transcript in enumerate(transcripts):
        if transcript is None:
            continue
        columns = [[column[s] for s in before] for column in network]
        grown = []
        for i, j in align(transcript, columns, len(before)):
            column = network[j] if j is not None else [None] * len(transcripts)
            if i is not None:
                column[system] = transcript[i]
            grown.append(column)
        network = grown
        before.append(system)
    return [tuple(column) for column in network]


def align(
    units: Sequence[Unit], columns: Sequence[Sequence[Unit | None]], systems: int
) -> list[tuple[int | None, int | None]]:
    """The best alignment of U units with C columns, see the module's text.

    Args:
        units: of a further system.
        columns: what the systems so far say.
        systems: how many they are; 0 with no columns.

    Returns:
        Pairs (index of a unit, index of a column) in order; None stands for none.
    """
    count, width = len(units), len(columns)
    ids: dict[str | None, int] = {None: 0}
    said = np.array(  # (systems, C)
        [[ids.setdefault(c[s] and c[s].key, len(ids)) for c in columns] for s in range(systems)],
        dtype=np.int64,
    ).reshape(systems, width)
    # Cost and disagreement are one integer: the disagreement of a whole alignment stays below one
    # step of the cost.
    scale = 2 * systems * (count + width) + 1
    null = (said == 0).any(0)
    apart = np.where(null, GAP, SUBSTITUTION) * scale  # on a null arc a unit is only an insertion
    skip = np.where(null, 0, GAP) * scale + (said != 0).sum(0)
    new = GAP * scale + systems
    # A row is found at once: the way along it is a running minimum, relative to the cost of
    # skipping all columns from the row's start.
    along = np.concatenate([[0], np.cumsum(skip)])
    row = along.copy()
    moves = np.full((count + 1, width + 1), SKIP, dtype=np.int8)
    for i, unit in enumerate(units):
        agreeing = (said == ids.get(unit.key, -1)).sum(0)
        across = row[:-1] + np.where(agreeing > 0, 0, apart) + systems - agreeing
        down = row + new
        entered = down.copy()
        np.minimum(entered[1:], across, out=entered[1:])
        row = np.minimum.accumulate(entered - along) + along
        # On the way back a shared column comes first, then an open one, then a skipped one.
        moves[i + 1][down <= row] = NEW
        moves[i + 1, 1:][across <= row[1:]] = SHARE
    pairs: list[tuple[int | None, int | None]] = []
    i, j = count, width
    while i or j:
        move = moves[i, j]
        i -= int(move != SKIP)
        j -= int(move != NEW)
        pairs.append((i if move != SKIP else None, j if move != NEW else None))
    return pairs[::-1]


class Ballot:
    """What can win in each column of many utterances, ready to be counted by any weights.

    Args:
        networks: by utterance, from `align_all`.
        systems: M.
        present: by utterance, whether each system has a transcript; all by default.
    """

    def __init__(
        self,
        networks: Sequence[Sequence[Column]],
        systems: int,
        present: Sequence[Sequence[bool]] | None = None,
    ):
        self.units: list[Unit | None] = []  # (A,), those of a column adjacent
        starts: list[int] = []  # (C,) where in it a column starts
        self.ends = [0]  # utterance n has the columns ends[n] to ends[n + 1]
        said: list[list[bool]] = []
        confidence: list[list[float]] = []
        voters: list[Sequence[bool]] = []
        for n, network in enumerate(networks):
            here = present[n] if present is not None else [True] * systems
            for column in network:
                starts.append(len(self.units))
                keys = [None if unit is None else unit.key for unit in column]
                # In the order of the systems, so that the first of equal scores may win.
                for key in dict.fromkeys(k for k, p in zip(keys, here, strict=True) if p):
                    says = [p and k == key for k, p in zip(keys, here, strict=True)]
                    self.units.append(column[says.index(True)])
                    said.append(says)
                    confidence.append([u.confidence if u else 0.0 for u in column])
                    voters.append(here)
            self.ends.append(len(starts))
        shape = (len(self.units), systems)
        self.starts = np.array(starts, dtype=np.int64)
        self.null = np.array([unit is None for unit in self.units], dtype=bool)
        self.said = np.array(said, dtype=bool).reshape(shape)  # (A, M)
        self.voters = np.array(voters, dtype=bool).reshape(shape)
        self.confidence = np.array(confidence, dtype=np.float64).reshape(shape) * self.said

    def scores(self, options: RoverOptions, weights: np.ndarray) -> np.ndarray:
        """The score of each alternative, (A,)."""
        votes = self.said @ weights
        share = votes / (self.voters @ weights)
        if options.voting == "frequency":
            return share
        if options.voting == "average":
            confidence = (self.confidence @ weights) / votes
        else:
            confidence = self.confidence.max(1, initial=0.0)
        confidence = np.where(self.null, options.null_confidence, confidence)
        return options.alpha * share + (1 - options.alpha) * confidence

    def winners(self, scores: np.ndarray) -> np.ndarray:
        """Which alternative wins each column, (C,) indices into `units`."""
        if not len(self.starts):
            return np.zeros(0, dtype=np.int64)
        sizes = np.diff(np.append(self.starts, len(scores)))
        best = np.repeat(np.maximum.reduceat(scores, self.starts), sizes)
        first = np.where(scores >= best - EQUAL, np.arange(len(scores)), len(scores))
        return np.minimum.reduceat(first, self.starts)

    def elect(self, options: RoverOptions, weights: np.ndarray) -> list[list[Unit]]:
        """The fused transcript of each utterance, without its null arcs."""
        scores = self.scores(options, weights)
        winners = self.winners(scores)
        fused = []
        for start, end in zip(self.ends, self.ends[1:], strict=False):
            chosen = [(self.units[a], float(scores[a])) for a in winners[start:end]]
            fused.append([Unit(u.key, u.text, score) for u, score in chosen if u is not None])
        return fused
