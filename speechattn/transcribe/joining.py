"""Joins what was recognised in overlapping windows of one recording.

A word in the overlap of two windows is heard twice, at times that differ by a few frames, and a
word that a border cuts comes out wrong or not at all. So the words of both windows are first
aligned with each other, by text and by time; then one place between two columns of the alignment
is chosen, left of which the first window is believed and right of which the second. Each word is
in one column: whatever its two times are, it is taken once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import merge
from itertools import groupby

from speechattn.decoding.alignment import TokenTime, word_times
from speechattn.transcribe.transcript import Span
from speechattn.units import SPACE_TOKEN, is_ideograph

# Costs of the alignment in seconds. Two equal words are one as long as their times differ by less
# than two MISSING: 3 frames of 40 ms either way in both windows are within it, the next of several
# equal words ("no, no") rarely is. Two different words are one, misheard, if within the rest that
# DIFFERENT leaves of that.
MISSING = 0.2
DIFFERENT = 0.15
# So near the other window's border (seconds) a word may well be missing there, for a part of
# MISSING.
BORDER = 0.4
BORDER_MISSING = 0.25
# Of a place with so many seconds of silence in both windows around it, they agree.
PAUSE = 0.5
# How far from the middle of the overlap, as a fraction of it, a place is worth going to that has
# agreement on both sides rather than one, or on one rather than none.
ONE_SIDED = 0.25
UNAGREED = 0.5
# A word that one window alone has is worth going so far for (seconds), all of it where it is so
# far from the border of its own window: models miss words more often than they make them up.
DROPPED = 0.6
TRUSTED = 1.0


@dataclass(frozen=True)
class Unit:
    """A word, or several that share a token, with its tokens.

    Attributes:
        text: the words.
        tokens: at least one, without separators around them.
        before: the separating tokens before it.
    """

    text: str
    tokens: tuple[Span, ...]
    before: tuple[Span, ...] = ()

    @property
    def time(self) -> float:
        """Return the middle of the word in seconds."""
        return (self.tokens[0].start + self.tokens[-1].end) / 2


def split_units(tokens: Sequence[Span]) -> list[Unit]:
    """Group tokens into words as `word_times` does. Separators after the last word are dropped."""
    # With numbers in the place of times, each word comes back with the numbers of its tokens.
    numbered = [TokenTime(i, i, i + 1, 0.0) for i in range(len(tokens))]
    units: list[Unit] = []
    end = 0
    for word in word_times(numbered, [token.text for token in tokens]):
        first, stop = math.floor(word.start + 1e-6), math.ceil(word.end - 1e-6)
        if units and first < end:  # shares a token with the word before
            last = units[-1]
            units[-1] = Unit(
                f"{last.text} {word.word}", (*last.tokens, *tokens[end:stop]), last.before
            )
        else:
            units.append(Unit(word.word, tuple(tokens[first:stop]), tuple(tokens[end:first])))
        end = stop
    return units


def align_units(
    left: Sequence[Unit], right: Sequence[Unit], start: float, end: float
) -> list[tuple[int | None, int | None]]:
    """Return the alignment of least cost between the words of two windows.

    Args:
        left: words near the end of the first window.
        right: words near the start of the second.
        start: of the second window, seconds.
        end: of the first window, seconds.

    Returns:
        Columns in order: which of `left` and which of `right`, None where it has no counterpart.
    """

    def missing(unit: Unit, border: float) -> float:
        inside = min(1.0, max(BORDER_MISSING, abs(unit.time - border) / BORDER))
        return MISSING * inside

    # What it costs that the other window has nothing there.
    only_left = [missing(unit, start) for unit in left]
    only_right = [missing(unit, end) for unit in right]
    cost = [[0.0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i in range(len(left) + 1):
        for j in range(len(right) + 1):
            if i or j:
                cost[i][j] = min(
                    total for total, *_ in _moves(left, right, only_left, only_right, cost, i, j)
                )
    columns: list[tuple[int | None, int | None]] = []
    i, j = len(left), len(right)
    while i or j:
        _, di, dj = min(_moves(left, right, only_left, only_right, cost, i, j))
        i, j = i - di, j - dj
        columns.append((i if di else None, j if dj else None))
    return _in_time(columns[::-1], left, right)


def _in_time(columns, left: Sequence[Unit], right: Sequence[Unit]):
    """Return the columns, unpaired words between two pairs in order of time."""
    found = []
    for paired, run in groupby(columns, lambda column: None not in column):
        run = list(run)
        if not paired:
            # Not sorted: the order within a window stays, whatever its times.
            ours, theirs = [c for c in run if c[1] is None], [c for c in run if c[0] is None]
            run = merge(ours, theirs, key=lambda c: _time(c, left, right))
        found += run
    return found


def _time(column, left: Sequence[Unit], right: Sequence[Unit]) -> float:
    """Return the seconds of a column, the mean of its words'."""
    heard = [units[k].time for units, k in zip((left, right), column, strict=True) if k is not None]
    return sum(heard) / len(heard)


def _moves(left, right, only_left, only_right, cost, i: int, j: int):
    """Yield the moves to cell (i, j): its cost by each, and the words that it takes of both."""
    if i and j:
        a, b = left[i - 1], right[j - 1]
        pair = abs(a.time - b.time) + (0.0 if a.text == b.text else DIFFERENT)
        yield cost[i - 1][j - 1] + pair, 1, 1
    if i:
        yield cost[i - 1][j] + only_left[i - 1], 1, 0
    if j:
        yield cost[i][j - 1] + only_right[j - 1], 0, 1


def join_units(
    left: Sequence[Unit], right: Sequence[Unit], start: float, end: float, space: bool = False
) -> tuple[list[Unit], int]:
    """Join two windows' words to one sequence.

    Args:
        left: all words up to the end of the first window.
        right: of the second window.
        start: of the second window, seconds.
        end: of the first window, seconds; not after `start` where they do not overlap.
        space: whether a token of its own stands between words.

    Returns:
        The words, and how many of them are from `left`.
    """
    if end <= start:
        return _concatenate(left, right, space), len(left)
    margin = 2 * MISSING
    first = next((i for i, u in enumerate(left) if u.time >= start - margin), len(left))
    stop = next((j for j, u in enumerate(right) if u.time > end + margin), len(right))
    late, early = left[first:], right[:stop]
    columns = align_units(late, early, start, end)
    cut = _best_cut(late, early, columns, start, end)
    taken = sum(i is not None for i, _ in columns[:cut])
    skipped = sum(j is not None for _, j in columns[:cut])
    return _concatenate(left[: first + taken], right[skipped:], space), first + taken


def _best_cut(
    left: Sequence[Unit],
    right: Sequence[Unit],
    columns: Sequence[tuple[int | None, int | None]],
    start: float,
    end: float,
) -> int:
    """Choose the column to change windows before: near the middle, where they agree."""
    agrees = [i is not None and j is not None and left[i].text == right[j].text for i, j in columns]
    # The borders of the overlap stand for a word on which nobody agrees.
    agrees = [False, *agrees, False]
    times = [start, *(_time(column, left, right) for column in columns), end]
    middle, overlap = (start + end) / 2, end - start
    # What it costs to leave out a word that one window alone has.
    ours = [_worth(end - left[i].time) if j is None else 0.0 for i, j in columns]
    theirs = [_worth(right[j].time - start) if i is None else 0.0 for i, j in columns]

    def cost(cut: int) -> float:
        low, high = times[cut : cut + 2]
        at = min(max(middle, low), max(low, high))  # between two words any moment will do
        sides = sum(agrees[c] or abs(times[c] - at) >= PAUSE for c in (cut, cut + 1))
        dropped = sum(theirs[:cut]) + sum(ours[cut:])
        return abs(at - middle) + overlap * (UNAGREED, ONE_SIDED, 0.0)[sides] + dropped

    return min(range(len(columns) + 1), key=lambda cut: (cost(cut), cut))


def _worth(inside: float) -> float:
    """Return the worth of a word so many seconds inside its window; near the border it is low."""
    return DROPPED * min(1.0, max(0.0, inside) / TRUSTED)


def _concatenate(left: Sequence[Unit], right: Sequence[Unit], space: bool) -> list[Unit]:
    """Join one after the other, with what separates words between."""
    right = list(right)
    # What stood first in its window has nothing before it.
    if left and right and space and not right[0].before:
        apart = not (is_ideograph(left[-1].text[-1]) or is_ideograph(right[0].text[0]))
        if apart:
            at, token = left[-1].tokens[-1].end, right[0].tokens[0]
            between = Span(SPACE_TOKEN, at, max(at, token.start), token.confidence)
            right[0] = replace(right[0], before=(between,))
    return [*left, *right]


class Joiner:
    """Takes windows in their order and keeps the words of the recording so far.

    Args:
        space: whether the model writes a token of its own between words.

    Attributes:
        units: the words.
        seams: where it changed from one window to the next, seconds.
    """

    def __init__(self, space: bool = False):
        self.space = space
        self.units: list[Unit] = []
        self.seams: list[float] = []
        self._end = -math.inf

    def add(self, tokens: Sequence[Span], start: float, end: float) -> None:
        """Add the next window.

        Args:
            tokens: in it, with times in the recording.
            start: of the window in the recording, seconds.
            end: of the window.
        """
        new = split_units(tokens)
        if self._end > -math.inf:
            self.units, taken = join_units(self.units, new, start, self._end, self.space)
            self.seams.append(self._seam(taken, start))
        else:
            self.units = new
        self._end = end

    def _seam(self, taken: int, start: float) -> float:
        around = [u.time for u in self.units[max(0, taken - 1) : taken + 1]]
        low, high = min(start, self._end), max(start, self._end)
        return min(high, max(low, sum(around) / len(around) if around else (low + high) / 2))

    def tokens(self) -> list[Span]:
        """Return all tokens so far; each starts no earlier than the one before it ends."""
        found: list[Span] = []
        end = 0.0
        for unit in self.units:
            for token in (*unit.before, *unit.tokens) if found else unit.tokens:
                start = max(token.start, end)
                end = max(token.end, start)
                found.append(replace(token, start=start, end=end))
        return found
