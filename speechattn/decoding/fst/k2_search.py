"""Search by k2's pruned intersection with torch, on any device, a batch at once."""

from collections.abc import Sequence
from copy import copy

import numpy as np

from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.lattice import EMPTY_LATTICE, Lattice, best
from speechattn.decoding.fst.path import EMPTY_PATH, LOST_PATH, GraphPath
from speechattn.decoding.fst.width import SearchWidth
from speechattn.k2.intersection import Columns, Intersection


class K2Search:
    """Decodes batches of recordings over the same graph.

    Args:
        graph: what may be said.
        width, device: how much the search keeps, and where it runs.

    Raises:
        ConfigError: k2 is not installed.
    """

    def __init__(self, graph: Graph, width: SearchWidth | None = None, device: str = "cpu"):
        self.graph = graph
        self.width = width or SearchWidth()
        columns = Columns(*graph.arcs.columns, graph.arcs.final)
        self._intersection = Intersection(columns, device)

    def with_width(self, width: SearchWidth) -> "K2Search":
        """Return a search of another width over the same graph."""
        other = copy(self)
        other.width = width
        return other

    def search(self, scores: np.ndarray) -> GraphPath:
        """Return the best path of a recording's (T, V) log-probabilities."""
        if not len(scores):
            return EMPTY_PATH
        (lattice,) = self.lattices([scores])
        return (None if lattice is None else best(lattice)) or LOST_PATH

    def lattices(self, scores: Sequence[np.ndarray]) -> list[Lattice | None]:
        """Return what is not worse by `lattice_beam` than the best path of each recording (T, V).

        Of recordings without frames, one without arcs; None where every path was lost.
        """
        spoken = [i for i, s in enumerate(scores) if len(s)]
        results: list[Lattice | None] = [EMPTY_LATTICE] * len(scores)
        if spoken:
            width = self.width
            found = self._intersection.lattices(
                [scores[i] for i in spoken],
                search_beam=width.beam,
                output_beam=width.lattice_beam,
                min_active=width.least_active(30),
                max_active=width.max_active,
            )
            for i, columns in zip(spoken, found, strict=True):
                results[i] = lattice_of(columns)
        return results


def lattice_of(found: Columns) -> Lattice | None:
    """Return a lattice, None where there is no path."""
    if not len(found.source):
        return None
    arcs = (found.source, found.target, found.label, found.output, found.score, found.frame)
    return Lattice.of(arcs, found.final)
