"""Arcs that read nothing are taken out: k2's dense intersection reads a unit with every arc.

The usual way gives a state the arcs of all states that it reaches for nothing; in a back-off model
that is the whole tree of words for every history. Here the arcs that come in are multiplied: one
that reads a unit may end at once in whatever its target reaches for nothing, which is a back-off or
two. The paths and their scores are the same.

Legend: S states, A arcs.
"""

from dataclasses import replace

import numpy as np

from speechattn.decoding.fst.arcs import Arcs

# What a state reaches for nothing: by (state, words on the way) the best score.
Reached = dict[tuple[int, tuple[int, ...]], float]


class Phrases:
    """Numbers for sequences of words that one arc writes; those of one word are the word's own.

    Args:
        words: W; a number up to W is a word.
    """

    def __init__(self, words: int):
        self.words = words
        self.found: list[tuple[int, ...]] = []
        self._number: dict[tuple[int, ...], int] = {}

    def words_of(self, number: int) -> tuple[int, ...]:
        """The phrase of a number."""
        if number <= self.words:
            return (number,) if number else ()
        return self.found[number - self.words - 1]

    def number(self, phrase: tuple[int, ...]) -> int:
        """0 for no words."""
        if len(phrase) < 2:
            return phrase[0] if phrase else 0
        if phrase not in self._number:
            self.found.append(phrase)
            self._number[phrase] = self.words + len(self.found)
        return self._number[phrase]


def without_epsilons(arcs: Arcs, silent: np.ndarray, phrases: Phrases) -> Arcs:
    """The same transducer, in which every arc reads.

    Args:
        arcs: outputs are words.
        silent: (A,) bool, the arcs that read nothing; there is no circle of them.
        phrases: gets what an arc now writes.
    """
    first = arcs.first()
    silent_of: dict[int, list[int]] = {}
    for i in np.flatnonzero(silent).tolist():
        silent_of.setdefault(int(arcs.source[i]), []).append(i)
    target, output, score = (c.tolist() for c in (arcs.target, arcs.output, arcs.score))
    known: dict[int, Reached] = {}

    def reached(state: int) -> Reached:
        if state not in known:
            found: Reached = {(state, ()): 0.0}
            for i in silent_of.get(state, ()):
                word = (output[i],) if output[i] else ()
                for (end, words), s in reached(target[i]).items():
                    key, total = (end, word + words), score[i] + s
                    found[key] = max(total, found.get(key, -np.inf))
            known[state] = found
        return known[state]

    rows: list[tuple[int, int, int, int, float]] = []
    for i in np.flatnonzero(~silent & np.isin(arcs.target, list(silent_of))).tolist():
        begin = (int(arcs.source[i]), int(arcs.label[i]))
        word = (output[i],) if output[i] else ()
        for (end, words), s in reached(target[i]).items():
            rows.append((*begin[:1], end, begin[1], phrases.number(word + words), score[i] + s))
    kept = ~silent & ~np.isin(arcs.target, list(silent_of))
    # Nothing comes into the start: it gets the arcs of what it reaches.
    for (end, words), s in reached(0).items():
        if end == 0:
            continue
        for i in range(first[end], first[end + 1]):
            if silent[i]:
                continue
            word = (output[i],) if output[i] else ()
            for (far, more), far_score in reached(target[i]).items():
                number = phrases.number(words + word + more)
                rows.append((0, far, int(arcs.label[i]), number, s + score[i] + far_score))
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    columns = [
        np.concatenate([c[kept], new])
        for c, new in zip(
            (arcs.source, arcs.target, arcs.label, arcs.output, arcs.score), table.T, strict=True
        )
    ]
    final = arcs.final.copy()
    final[0] = max(arcs.final[end] + s for (end, words), s in reached(0).items() if not words)
    return replace(Arcs.of(*columns, final), final=final)
