"""Search with Kaldi's decoders (`kaldi-decoder`): the best path, or a lattice."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.lattice import EMPTY_LATTICE, Lattice
from speechattn.decoding.fst.openfst import compiled
from speechattn.decoding.fst.path import EMPTY_PATH, LOST_PATH, GraphPath
from speechattn.decoding.fst.width import SearchWidth
from speechattn.errors import missing_extra


class KaldiSearch:
    """A search over one graph, one utterance at a time.

    Args:
        graph: the decoding graph.
        width: how much the search keeps.

    Raises:
        ConfigError: kaldi-decoder is not installed.
    """

    def __init__(self, graph: Graph, width: SearchWidth | None = None):
        try:
            import kaldi_decoder
            import kaldifst
        except ImportError as error:
            raise missing_extra("fst", "kaldi-decoder") from error
        self._kaldi = kaldi_decoder
        self.graph = graph
        self.width = width or SearchWidth()
        self._fst = kaldifst.StdConstFst(openfst(graph))

    def with_width(self, width: SearchWidth) -> "KaldiSearch":
        """Return a search of another width over the same graph."""
        other = copy(self)
        other.width = width
        return other

    def search(self, scores: np.ndarray) -> GraphPath:
        """Return the best path of (T, V) log-probabilities, in a final state if any path is."""
        if not len(scores):
            return EMPTY_PATH
        width = self.width
        options = self._kaldi.FasterDecoderOptions(
            beam=width.beam, max_active=width.max_active, min_active=width.least_active(20)
        )
        decoder = self._kaldi.FasterDecoder(self._fst, options)
        decoder.decode(self._kaldi.DecodableCtc(np.ascontiguousarray(scores, np.float32)))
        ended = decoder.reached_final()
        found, best = decoder.get_best_path(use_final_probs=ended)
        return replace(read_path(best), ended=ended) if found else LOST_PATH

    def lattices(self, scores: Sequence[np.ndarray]) -> list[Lattice | None]:
        """Return the `lattice` of each utterance; one without arcs where there are no frames."""
        return [self.lattice(s) if len(s) else EMPTY_LATTICE for s in scores]

    def lattice(self, scores: np.ndarray) -> Lattice | None:
        """Return the paths of an utterance that are within `lattice_beam` of the best.

        Args:
            scores: (T, V) float32 log-probabilities, T > 0.

        Returns:
            A lattice; if no path ends in a final state, all its paths count as ended. None if the
            beam pruned every path.
        """
        width = self.width
        beams = {"beam": width.beam, "lattice_beam": width.lattice_beam}
        options = self._kaldi.LatticeSimpleDecoderConfig(**beams)
        decoder = self._kaldi.LatticeSimpleDecoder(self._fst, options)
        if not decoder.decode(self._kaldi.DecodableCtc(np.ascontiguousarray(scores, np.float32))):
            return None
        ended = bool(np.isfinite(decoder.final_relative_cost()))
        found, lattice = decoder.get_raw_lattice(use_final_probs=ended)
        return read_lattice(lattice) if found else None


def read_lattice(raw: Any) -> Lattice:
    """Convert Kaldi's lattice, whose arcs have costs of the graph and of frames."""
    arcs, final = [], np.full(raw.num_states, -np.inf)
    for line in raw.to_str(show_weight_one=True).splitlines():
        state, *arc, weight = line.split() if "," in line else [*line.split(), "0,0"]
        graph, frame = weight.split(",")
        if arc:
            target, label, output = arc
            arcs.append((state, target, label, output, graph, frame))
        else:
            final[int(state)] = -float(graph) - float(frame)
    table = np.array(arcs, dtype=np.float64).reshape(-1, 6)
    source, target, label, output = table[:, :4].astype(np.int64).T
    name = np.arange(raw.num_states)
    name[[0, raw.start]] = raw.start, 0  # the first state is 0
    columns = (label - 1, output, -table[:, 4], -table[:, 5])
    return Lattice.of((name[source], name[target], *columns), final[name])


def read_path(lattice: Any) -> GraphPath:
    """Convert a lattice of one path."""
    events, starts, labels, costs = [], [], [], np.zeros(2)
    rows = {}
    for line in lattice.to_str(show_weight_one=True).splitlines():
        state, *rest = line.split()
        rows[int(state)] = rest
    state = lattice.start
    while True:
        *arc, weight = rows[state] if rows[state] else ["0,0"]
        costs += [float(part) for part in weight.split(",")]
        if not arc:
            said = tuple(events), tuple(starts), np.array(labels, np.int32)
            return GraphPath(*said, -float(costs.sum()), -float(costs[0]))
        state, label, output = map(int, arc)
        if output:
            events.append(output)
            starts.append(len(labels))
        if label:
            labels.append(label - 1)


def openfst(graph: Graph) -> Any:
    """Convert a graph to OpenFst: labels are one higher, costs are negated scores."""
    arcs = graph.arcs
    columns = (arcs.source, arcs.target, arcs.label + 1, arcs.output, -arcs.score)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    lines = [f"{s} {t} {label} {out} {cost:.9g}" for s, t, label, out, cost in rows]
    ends = np.flatnonzero(np.isfinite(arcs.final))
    lines += [f"{s} {-arcs.final[s]:.9g}" for s in ends.tolist()]
    return compiled(lines)
