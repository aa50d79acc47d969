"""A language model too large for a graph, which gives a lattice's paths their scores afterwards.

Whole-lattice rescoring: every path loses the graph's score and gets that of the n-gram model, which
finds a better sentence than an n-best list can hold (Ljolje, Pereira and Riley, "Efficient general
lattice generation and rescoring", 1999).

Legend: P states of the lattice with what the model has heard, W words, M words of an event at most.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.lattice import Lattice, expanded
from speechattn.lm.ngram import NgramLm
from speechattn.units import BLANK_TOKEN, SOS_EOS_TOKEN, UNK_TOKEN

FIRST = 2  # the number that the first word has for the n-gram model


class WordLm:
    """An n-gram model of a graph's words.

    Args:
        path: an ARPA file of words; those that it lacks are `<unk>` to it.
        words: (W,) of the graph.

    Raises:
        ConfigError: it cannot be read, or has none of the words.
    """

    def __init__(self, path: str | Path, words: Sequence[str]):
        self.ngram = NgramLm.from_arpa(path, [BLANK_TOKEN, UNK_TOKEN, *words, SOS_EOS_TOKEN])

    def rescored(self, lattice: Lattice, graph: Graph, weight: float = 1.0) -> Lattice:
        """The same paths, whose graph scores are those of this model.

        Args:
            lattice: over the graph.
            graph: whose events it writes.
            weight: of the scores.
        """
        spelled = _words_of(graph)  # (events + 1, M), what no event writes is 0

        def step(heard: np.ndarray, output: np.ndarray) -> tuple[np.ndarray, ...]:
            score = np.zeros(len(output))
            after = heard.copy()
            writes = np.flatnonzero(spelled[output, 0]) if len(spelled[0]) else []
            if len(writes):
                after[writes], score[writes] = self._heard(heard[writes], spelled[output[writes]])
            return after, weight * score, np.ones(len(output), bool)

        states = len(self.ngram.weight)
        found = expanded(lattice, np.array([self.ngram.start]), states, step)
        last = np.full(len(found.memory), self.ngram.vocab_size - 1)
        final = weight * self._score(torch.from_numpy(found.memory), torch.from_numpy(last)).numpy()
        ended = np.isfinite(lattice.final[found.state])
        return found.with_graph(found.score, np.where(ended, final, -np.inf))

    def _heard(self, state: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States (P,) after words (P, M), 0 where there are fewer, and the words' scores (P,)."""
        state, words = torch.from_numpy(state), torch.from_numpy(words)
        total = torch.zeros(len(state), dtype=torch.float64)
        for word in words.T:
            given, unit = word > 0, word + FIRST - 1
            total += torch.where(given, self._score(state, unit), 0.0)
            state = torch.where(given, self.ngram.step(state, unit), state)
        return state.numpy(), total.numpy()

    def _score(self, state: Tensor, unit: Tensor) -> Tensor:
        return self.ngram.score(state, unit).double()


def _words_of(graph: Graph) -> np.ndarray:
    """(events + 1, M) int64, the words that each event writes, then 0."""
    most = max((len(event.words) for event in graph.events), default=0)
    table = np.zeros((len(graph.events) + 1, most), np.int64)
    for number, event in enumerate(graph.events, 1):
        table[number, : len(event.words)] = event.words
    return table
