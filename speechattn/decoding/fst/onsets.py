"""A penalty on late tokens in a search over a graph.

Delay-penalised CTC (2305.11539) gives the first frame of each token a score by its time. A graph
reads a unit's first frame and those after it alike; here the first has a label of its own, so that
what it scores can be told to any search as a column of its own.

Legend: T frames, V units.
"""

from dataclasses import replace

import numpy as np

from speechattn.decoding.fst.graph import Graph


def with_onsets(graph: Graph) -> Graph:
    """The same graph, which reads V more where a unit begins."""
    arcs = graph.arcs
    label = np.where(arcs.output > 0, arcs.label + graph.vocab_size, arcs.label)
    arcs = replace(arcs, label=label.astype(np.int32))
    return replace(graph, arcs=arcs, vocab_size=2 * graph.vocab_size)


def delayed(scores: np.ndarray, penalty: float) -> np.ndarray:
    """The scores (T, 2 V) that such a graph reads, of log-probabilities (T, V).

    The first frame t of a token gets `-penalty * (t - T // 2)`, as in the loss.
    """
    late = np.arange(len(scores)) - len(scores) // 2
    return np.concatenate([scores, scores - penalty * late[:, None].astype(scores.dtype)], axis=1)
