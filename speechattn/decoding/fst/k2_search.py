"""Search by k2's pruned intersection with torch, on any device, a batch at once."""

from collections.abc import Sequence
from copy import copy

import numpy as np

from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.k2py_search import PrunedOptions
from speechattn.decoding.fst.lattice import SILENCE, Lattice, best
from speechattn.decoding.fst.path import LOST, NOTHING, Path
from speechattn.k2.intersection import Columns, Intersection


class K2Search:
    """Decodes batches of recordings over the same graph.

    Args:
        graph: what may be said.
        options: how wide the search is.
        device: of the search.

    Raises:
        ConfigError: k2 is not installed.
    """

    def __init__(self, graph: Graph, options: PrunedOptions | None = None, device: str = "cpu"):
        self.graph = graph
        self.options = options or PrunedOptions()
        arcs = graph.arcs
        self._intersection = Intersection(
            Columns(arcs.source, arcs.target, arcs.label, arcs.output, arcs.score, arcs.final),
            device,
        )

    def with_options(self, options: PrunedOptions) -> "K2Search":
        """The same graph, searched otherwise."""
        other = copy(self)
        other.options = options
        return other

    def search(self, scores: np.ndarray) -> Path:
        """The best path of a recording's (T, V) log-probabilities."""
        if not len(scores):
            return NOTHING
        (lattice,) = self.lattices([scores])
        return (None if lattice is None else best(lattice)) or LOST

    def lattices(self, scores: Sequence[np.ndarray]) -> list[Lattice | None]:
        """What is not worse by `output_beam` than the best path of each recording (T, V).

        Of recordings without frames, one without arcs; None where every path was lost.
        """
        heard = [i for i, s in enumerate(scores) if len(s)]
        results: list[Lattice | None] = [SILENCE] * len(scores)
        if heard:
            o = self.options
            width = o.search_beam, o.output_beam, o.min_active, o.max_active
            found = self._intersection.lattices([scores[i] for i in heard], *width)
            for i, columns in zip(heard, found, strict=True):
                results[i] = lattice_of(columns)
        return results


def lattice_of(found: Columns) -> Lattice | None:
    """None where there is no path."""
    if not len(found.source):
        return None
    arcs = (found.source, found.target, found.label, found.output, found.score, found.frame)
    return Lattice.of(arcs, found.final)
