"""Delay penalty in the search over a graph.

Delay-penalised CTC (2305.11539) scores the first frame of each token by its time. A graph reads the
first frame of a unit and those after it with the same label; here first frames get labels of their
own, so that any search takes their scores as V more columns.
"""

from dataclasses import replace

import numpy as np

from speechattn.decoding.fst.graph import Graph


def with_onsets(graph: Graph) -> Graph:
    """Return the graph with labels raised by V where a unit begins."""
    arcs = graph.arcs
    label = np.where(arcs.output > 0, arcs.label + graph.vocab_size, arcs.label)
    arcs = replace(arcs, label=label.astype(np.int32))
    return replace(graph, arcs=arcs, vocab_size=2 * graph.vocab_size)


def delayed(scores: np.ndarray, penalty: float) -> np.ndarray:
    """Return the scores (T, 2 V) that such a graph reads, from log-probabilities (T, V).

    A token whose first frame is t gets `-penalty * (t - T // 2)`, as in the loss.
    """
    late = np.arange(len(scores)) - len(scores) // 2
    return np.concatenate([scores, scores - penalty * late[:, None].astype(scores.dtype)], axis=1)
