"""Removal of input epsilons: k2's dense intersection reads a unit with every arc.

The usual algorithm gives a state the arcs of every state in its epsilon closure; with a back-off
model that copies the tree of all words for every history. Here incoming arcs are copied instead: an
arc that reads a unit gets a copy for each state in its target's closure, which holds a back-off or
two. Paths and scores stay the same.
"""

import numpy as np

from speechattn.decoding.fst.arcs import Arcs

# Epsilon closure of a state: (state, words on the way) to the best score.
Closure = dict[tuple[int, tuple[int, ...]], float]


class Phrases:
    """Numbers of word sequences that one arc writes; numbers up to `words` (W) are single words."""

    def __init__(self, words: int):
        self.words = words
        self.found: list[tuple[int, ...]] = []
        self._number: dict[tuple[int, ...], int] = {}

    def words_of(self, number: int) -> tuple[int, ...]:
        """Return the words of a number."""
        if number <= self.words:
            return (number,) if number else ()
        return self.found[number - self.words - 1]

    def number(self, phrase: tuple[int, ...]) -> int:
        """Return the number of some words, 0 for none."""
        if len(phrase) < 2:
            return phrase[0] if phrase else 0
        if phrase not in self._number:
            self.found.append(phrase)
            self._number[phrase] = self.words + len(self.found)
        return self._number[phrase]


def without_epsilons(arcs: Arcs, silent: np.ndarray, phrases: Phrases) -> Arcs:
    """Return an equivalent transducer in which every arc reads a label.

    Args:
        arcs: outputs are words.
        silent: (A,) bool, the arcs that read nothing; they form no cycle.
        phrases: numbers what one arc now writes; extended here.
    """
    first = arcs.first()
    silent_of: dict[int, list[int]] = {}
    for i in np.flatnonzero(silent).tolist():
        silent_of.setdefault(int(arcs.source[i]), []).append(i)
    target, output, score = (c.tolist() for c in (arcs.target, arcs.output, arcs.score))
    closures: dict[int, Closure] = {}

    def closure(state: int) -> Closure:
        if state not in closures:
            found: Closure = {(state, ()): 0.0}
            for i in silent_of.get(state, ()):
                word = (output[i],) if output[i] else ()
                for (end, words), s in closure(target[i]).items():
                    key, total = (end, word + words), score[i] + s
                    found[key] = max(total, found.get(key, -np.inf))
            closures[state] = found
        return closures[state]

    rows: list[tuple[int, int, int, int, float]] = []
    copied = np.isin(arcs.target, list(silent_of))
    kept = ~silent & ~copied
    for i in np.flatnonzero(~silent & copied).tolist():
        source, label = int(arcs.source[i]), int(arcs.label[i])
        word = (output[i],) if output[i] else ()
        for (end, words), s in closure(target[i]).items():
            rows.append((source, end, label, phrases.number(word + words), score[i] + s))
    # The start has no incoming arcs: it gets the arcs of its closure.
    for (end, words), s in closure(0).items():
        if end == 0:
            continue
        for i in range(first[end], first[end + 1]):
            if silent[i]:
                continue
            word = (output[i],) if output[i] else ()
            for (far, more), far_score in closure(target[i]).items():
                number = phrases.number(words + word + more)
                rows.append((0, far, int(arcs.label[i]), number, s + score[i] + far_score))
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    pairs = zip(arcs.columns, table.T, strict=True)
    columns = [np.concatenate([column[kept], new]) for column, new in pairs]
    final = arcs.final.copy()
    final[0] = max(arcs.final[end] + s for (end, words), s in closure(0).items() if not words)
    return Arcs.of(columns, final)
