"""Lattice rescoring by an n-gram model that is too large for a graph.

In every path of the lattice the graph's scores are replaced by the n-gram model's, which can find
sentences that no n-best list holds (Ljolje, Pereira and Riley, "Efficient general lattice
generation and rescoring", 1999).

P here: states of the lattice with a state of the language model; M: most words of an event.
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

FIRST = 2  # id of the first word in the n-gram model


class WordLm:
    """An n-gram model of a graph's words.

    Args:
        path: an ARPA file of words; graph words that it lacks are scored as `<unk>`.
        words: (W,) the graph's words.

    Raises:
        ConfigError: the file cannot be read, or has none of the words.
    """

    def __init__(self, path: str | Path, words: Sequence[str]):
        self.ngram = NgramLm.from_arpa(path, [BLANK_TOKEN, UNK_TOKEN, *words, SOS_EOS_TOKEN])

    def rescored(self, lattice: Lattice, graph: Graph, weight: float = 1.0) -> Lattice:
        """Return a lattice over `graph`, its scores replaced by `weight` times this model's."""
        words = _words_of(graph)  # (E + 1, M)

        def step(state: np.ndarray, output: np.ndarray) -> tuple[np.ndarray, ...]:
            score = np.zeros(len(output))
            after = state.copy()
            writes = np.flatnonzero(words[output, 0]) if len(words[0]) else []
            if len(writes):
                after[writes], score[writes] = self._read(state[writes], words[output[writes]])
            return after, weight * score, np.ones(len(output), bool)

        states = len(self.ngram.weight)
        found = expanded(lattice, np.array([self.ngram.start]), states, step)
        last = np.full(len(found.memory), self.ngram.vocab_size - 1)
        final = weight * self._score(torch.from_numpy(found.memory), torch.from_numpy(last)).numpy()
        ended = np.isfinite(lattice.final[found.state])
        return found.with_graph(found.score, np.where(ended, final, -np.inf))

    def _read(self, state: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the states (P,) after words (P, M), padded by 0, and their scores (P,)."""
        state, words = torch.from_numpy(state), torch.from_numpy(words)
        total = torch.zeros(len(state), dtype=torch.float64)
        for word in words.T:
            real, unit = word > 0, word + FIRST - 1
            total += torch.where(real, self._score(state, unit), 0.0)
            state = torch.where(real, self.ngram.step(state, unit), state)
        return state.numpy(), total.numpy()

    def _score(self, state: Tensor, unit: Tensor) -> Tensor:
        return self.ngram.score(state, unit).double()


def _words_of(graph: Graph) -> np.ndarray:
    """Return (E + 1, M) int64, the words that each event writes, padded by 0."""
    most = max((len(event.words) for event in graph.events), default=0)
    table = np.zeros((len(graph.events) + 1, most), np.int64)
    for number, event in enumerate(graph.events, 1):
        table[number, : len(event.words)] = event.words
    return table
