"""Pruned intersection of a graph with frames (`k2.intersect_dense_pruned`), a batch at once.

Legend: A arcs and S states of a graph or of a lattice, T frames, V units.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from speechattn.k2.library import library


@dataclass(frozen=True)
class Columns:
    """Arcs with their scores; state 0 is the first.

    Attributes:
        source: (A,) int32, sorted.
        target: (A,) int32.
        label: (A,) int32, the unit that is read.
        output: (A,) int32, 0 for none.
        score: (A,) float32.
        final: (S,) float32, -inf where no path ends.
        frame: (A,) float32, in a lattice the share of a frame in the score.
    """

    source: np.ndarray
    target: np.ndarray
    label: np.ndarray
    output: np.ndarray
    score: np.ndarray
    final: np.ndarray
    frame: np.ndarray | None = None


class Intersection:
    """A graph to intersect with frames.

    Args:
        graph: every arc reads a frame.
        device: of the search.
    """

    def __init__(self, graph: Columns, device: str | torch.device = "cpu"):
        k2 = library()
        last, ends = len(graph.final), np.flatnonzero(np.isfinite(graph.final))
        none = np.full(len(ends), -1)
        columns = [
            np.concatenate([a, b]).astype(np.int32)
            for a, b in (
                (graph.source, ends),
                (graph.target, np.full(len(ends), last)),
                (graph.label, none),
                (graph.output, none),
            )
        ]
        score = np.concatenate([graph.score, graph.final[ends]]).astype(np.float32)
        order = np.argsort(columns[0], kind="stable")
        source, target, label, output = (torch.from_numpy(c[order]) for c in columns)
        score = torch.from_numpy(score[order])
        arcs = torch.stack([source, target, label, score.view(torch.int32)], 1)
        fsa = k2.Fsa(arcs, aux_labels=output)
        fsa.graph_score = score
        self._k2 = k2
        self._fsa = k2.create_fsa_vec([fsa]).to(device)
        self._device = device

    def lattices(
        self,
        scores: Sequence[np.ndarray],
        search_beam: float = 20.0,
        output_beam: float = 8.0,
        min_active: int = 30,
        max_active: int = 10000,
    ) -> list[Columns]:
        """Return the pruned lattice of each recording, whose arcs all read a frame.

        Args:
            scores: of each recording (T, V) log-probabilities, T > 0.
            search_beam: partial paths this much worse than the best are pruned.
            output_beam: paths this much worse than the best are left out of the lattice.
            min_active: states that are kept in a frame whatever their scores.
            max_active: states that are kept in a frame at most.

        Returns:
            A lattice for each recording, without arcs where every path was pruned.
        """
        lengths = [len(s) for s in scores]
        order = sorted(range(len(scores)), key=lambda i: -lengths[i])  # k2 wants it so
        padded = np.zeros((len(scores), max(lengths), scores[0].shape[1]), np.float32)
        for i, s in enumerate(scores):
            padded[i, : len(s)] = s
        segments = torch.tensor([[i, 0, lengths[i]] for i in order], dtype=torch.int32)
        dense = self._k2.DenseFsaVec(torch.from_numpy(padded).to(self._device), segments)
        found = self._k2.intersect_dense_pruned(
            self._fsa, dense, search_beam, output_beam, min_active, max_active
        )
        results: list[Columns] = [None] * len(scores)
        for place, i in enumerate(order):
            results[i] = _columns(found[place].to("cpu"))
        return results


def _columns(fsa) -> Columns:
    """Convert a lattice, without k2's last state, into which arcs of label -1 lead."""
    arcs = fsa.arcs.values().numpy()
    source, target, label = arcs[:, 0], arcs[:, 1], arcs[:, 2]
    score, graph = fsa.scores.detach().numpy(), fsa.graph_score.numpy()
    ends = label == -1
    final = np.full(max(int(target.max(initial=1)), 1), -np.inf, np.float32)
    final[source[ends]] = graph[ends]
    columns = (source, target, label, fsa.aux_labels.numpy(), graph)
    return Columns(*(c[~ends].copy() for c in columns), final, (score - graph)[~ends])
