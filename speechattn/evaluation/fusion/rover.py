"""ROVER: one transcript out of several systems', by a vote on each unit.

Fiscus, "A post-processing system to yield reduced word error rates: Recognizer Output Voting Error
Reduction (ROVER)", ASRU 1997, and NIST's program of that name (SCTK 2.4).

1. Alignment. The first system's transcript is a word transition network of one column per unit.
   Each further transcript, in the order given, is aligned to the network so far at sclite's costs:
   4 for a unit that no system in the column has, 3 for a unit without a column and for a column
   without a unit. Skipping a column that has a null arc is free, and a unit on such a column costs
   3, like an insertion, so that a transcript's cost is its distance from the nearest path through
   the network. (NIST's program asks 1 for a unit on a null arc, so it reuses such columns more
   readily.) Of alignments of the same cost the one with most agreement between pairs of systems is
   taken, then the one that uses columns as late as possible.
2. Vote. An alternative is a unit that one or more systems have in a column, or the null arc. Its
   score is ``alpha * F + (1 - alpha) * C``, where F is the share of the systems, by weight, that
   have it, and C comes from their confidences as `RoverOptions.voting` says. The highest score
   wins; among equal ones, the alternative of the earliest system. (Among equal ones NIST's program
   prefers a unit to the null arcs of the systems before it.)

The order of systems matters for both, in favor of the first: put the best one there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from speechattn.errors import ConfigError

Voting = Literal["frequency", "average", "maximum", "avgconf"]

SUBSTITUTION, GAP = 4, 3  # sclite's costs
EQUAL = 1e-9  # scores nearer than this are equal: they are sums of a few weights

SHARE, SKIP, NEW = 0, 1, 2  # unit in a column; column without unit; unit without column


@dataclass(frozen=True)
class RoverOptions:
    """Options of the vote.

    Args:
        voting: the confidence C of an alternative. `frequency`: none, alpha is 1 (the paper's
            Nist1). `average`: the mean of its systems' confidences (Nist2, the program's `meth1`).
            `maximum`: the highest of them (Nist3, `maxconf`). `avgconf`, as in the program: the
            sum of them divided by the sum over the whole column, null arcs included.
        alpha: weight of the votes against the confidences, 0..1.
        null_confidence: confidence of a null arc, 0..1.
    """

    voting: Voting = "frequency"
    alpha: float = 0.5
    null_confidence: float = 0.5

    def __post_init__(self):
        if self.voting not in get_args(Voting):
            raise ConfigError(f"voting: one of {', '.join(get_args(Voting))}, not {self.voting!r}")
        for name in ("alpha", "null_confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: 0 to 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Unit:
    """A word or a character of one system's transcript.

    Args:
        key, text: the forms in which units are compared and written.
        confidence: 0..1.
    """

    key: str
    text: str
    confidence: float


Column = tuple[Unit | None, ...]
"""(M,) the unit of each system; None for a null arc."""


def rover(
    transcripts: Sequence[Sequence[Unit]],
    options: RoverOptions | None = None,
    weights: Sequence[float] | None = None,
) -> list[Unit]:
    """Fuse M transcripts of one utterance.

    Args:
        transcripts: the base of the network first.
        options: of the vote.
        weights: (M,) of the systems, positive; equal by default.

    Returns:
        The winners, written as by the first system that has them; their confidence is the score
        that they won with.
    """
    alternatives = Alternatives([align_all(transcripts)], len(transcripts))
    weights = check_weights(weights, len(transcripts))
    return alternatives.fuse(options or RoverOptions(), weights)[0]


def check_weights(weights: Sequence[float] | None, count: int) -> np.ndarray:
    """Return weights as (M,) float64, ones by default; refuse any that is not positive."""
    if weights is None:
        return np.ones(count)
    checked = np.asarray(weights, dtype=np.float64)
    if checked.shape != (count,):
        raise ConfigError(f"{len(weights)} weights for {count} systems")
    if not (np.isfinite(checked).all() and (checked > 0).all()):
        raise ConfigError(
            f"weights must be above 0, not {', '.join(f'{w:g}' for w in checked)}; to ignore a "
            "system, leave it out"
        )
    return checked


def align_all(transcripts: Sequence[Sequence[Unit] | None]) -> list[Column]:
    """Return the word transition network of several transcripts as C columns.

    A system without a transcript (None, unlike an empty one) does not take part.
    """
    network: list[list[Unit | None]] = []
    merged: list[int] = []  # systems in the network so far
    for system, transcript in enumerate(transcripts):
        if transcript is None:
            continue
        columns = [[column[s] for s in merged] for column in network]
        grown = []
        for i, j in align(transcript, columns, len(merged)):
            column = network[j] if j is not None else [None] * len(transcripts)
            if i is not None:
                column[system] = transcript[i]
            grown.append(column)
        network = grown
        merged.append(system)
    return [tuple(column) for column in network]


def align(
    units: Sequence[Unit], columns: Sequence[Sequence[Unit | None]], systems: int
) -> list[tuple[int | None, int | None]]:
    """Align U units to the C columns of a network at the least cost, see the module's text.

    Args:
        units: a further system's transcript.
        columns: entries of the `systems` merged so far.
        systems: number of these.

    Returns:
        Pairs (index of a unit or None, index of a column or None) in order.
    """
    count, width = len(units), len(columns)
    ids: dict[str | None, int] = {None: 0}
    said = np.array(  # (systems, C)
        [[ids.setdefault(c[s] and c[s].key, len(ids)) for c in columns] for s in range(systems)],
        dtype=np.int64,
    ).reshape(systems, width)
    # Cost and disagreement as one integer: the disagreement of a whole alignment is less than the
    # scale of the cost.
    scale = 2 * systems * (count + width) + 1
    null = (said == 0).any(0)
    apart = np.where(null, GAP, SUBSTITUTION) * scale  # on a null arc: an insertion
    skip = np.where(null, 0, GAP) * scale + (said != 0).sum(0)
    new = GAP * scale + systems
    # A row at once: skips along it are a running minimum, relative to the cost of skipping all
    # columns from the row's start.
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
        # Back-tracing prefers to share a column, then to open one, then to skip one.
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


class Alternatives:
    """What can win in each column of many utterances, to be scored with any options and weights.

    Args:
        networks: (B,) networks from `align_all`.
        systems: M.
        present: (B, M) which systems have a transcript; all by default.
    """

    def __init__(
        self,
        networks: Sequence[Sequence[Column]],
        systems: int,
        present: Sequence[Sequence[bool]] | None = None,
    ):
        self.units: list[Unit | None] = []  # (A,), column by column
        starts: list[int] = []  # (C,) index of each column's first alternative
        self.ends = [0]  # utterance b has the columns ends[b] to ends[b + 1]
        said: list[list[bool]] = []
        confidence: list[list[float]] = []
        voters: list[Sequence[bool]] = []
        for b, network in enumerate(networks):
            here = present[b] if present is not None else [True] * systems
            for column in network:
                starts.append(len(self.units))
                keys = [None if unit is None else unit.key for unit in column]
                # In the order of the systems, so that the first of equal scores wins.
                for key in dict.fromkeys(k for k, p in zip(keys, here, strict=True) if p):
                    says = [p and k == key for k, p in zip(keys, here, strict=True)]
                    self.units.append(column[says.index(True)])
                    said.append(says)
                    confidence.append([u.confidence if u else 0.0 for u in column])
                    voters.append(here)
            self.ends.append(len(starts))
        shape = (len(self.units), systems)
        self.starts = np.array(starts, dtype=np.int64)
        self.sizes = np.diff(np.append(self.starts, len(self.units)))  # (C,)
        self.null = np.array([unit is None for unit in self.units], dtype=bool)
        self.said = np.array(said, dtype=bool).reshape(shape)  # (A, M)
        self.voters = np.array(voters, dtype=bool).reshape(shape)
        self.confidence = np.array(confidence, dtype=np.float64).reshape(shape) * self.said

    def scores(self, options: RoverOptions, weights: np.ndarray) -> np.ndarray:
        """Return the score of each alternative, (A,)."""
        votes = self.said @ weights
        share = votes / (self.voters @ weights)
        if options.voting == "frequency" or not len(share):
            return share
        if options.voting == "maximum":
            confidence = self.confidence.max(1, initial=0.0)
        else:
            confidence = (self.confidence @ weights) / votes
        confidence = np.where(self.null, options.null_confidence, confidence)
        if options.voting == "avgconf":
            mass = confidence * votes
            total = np.repeat(np.add.reduceat(mass, self.starts), self.sizes)
            confidence = np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)
        return options.alpha * share + (1 - options.alpha) * confidence

    def winners(self, scores: np.ndarray) -> np.ndarray:
        """Return the winner of each column, (C,) indices into `units`."""
        if not len(self.starts):
            return np.zeros(0, dtype=np.int64)
        best = np.repeat(np.maximum.reduceat(scores, self.starts), self.sizes)
        first = np.where(scores >= best - EQUAL, np.arange(len(scores)), len(scores))
        return np.minimum.reduceat(first, self.starts)

    def fuse(self, options: RoverOptions, weights: np.ndarray) -> list[list[Unit]]:
        """Return the fused transcript of each utterance, without null arcs."""
        scores = self.scores(options, weights)
        winners = self.winners(scores)
        fused = []
        for start, end in zip(self.ends, self.ends[1:], strict=False):
            chosen = [(self.units[a], float(scores[a])) for a in winners[start:end]]
            fused.append([Unit(u.key, u.text, score) for u, score in chosen if u is not None])
        return fused
