"""Search by Kaldi's decoders, as `kaldi-decoder` packages them: the best path, or a lattice.

Legend: T frames, V units.
"""

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.openfst import compiled, libraries
from speechattn.decoding.fst.path import LOST, NOTHING, Path
from speechattn.errors import ConfigError


@dataclass(frozen=True)
class KaldiOptions:
    """How wide the search is.

    Attributes:
        beam: partial paths that are this much worse than the best of their frame are dropped.
        lattice_beam: paths that are this much worse than the best are no part of the lattice.
        min_active: states that are kept in a frame whatever their scores.
        max_active: states that are kept in a frame at most.
    """

    beam: float = 16.0
    lattice_beam: float = 8.0
    min_active: int = 20
    max_active: int = 7000


class KaldiSearch:
    """Decodes one recording after another over the same graph.

    Args:
        graph: what may be said.
        options: how wide the search is.

    Raises:
        ConfigError: kaldi-decoder is not installed.
    """

    def __init__(self, graph: Graph, options: KaldiOptions | None = None):
        try:
            import kaldi_decoder
            import kaldifst
        except ImportError as error:
            raise ConfigError(
                "this search needs kaldi-decoder: pip install 'speechattn[fst]'"
            ) from error
        self._kaldi = kaldi_decoder
        self.graph = graph
        self.options = options or KaldiOptions()
        self._fst = kaldifst.StdConstFst(openfst(graph))

    def with_options(self, options: KaldiOptions) -> "KaldiSearch":
        """The same graph, searched otherwise."""
        other = copy(self)
        other.options = options
        return other

    def search(self, scores: np.ndarray) -> Path:
        """The best path of a recording's (T, V) log-probabilities.

        Where the graph lets no path end in the last frame, the best that is there.
        """
        if not len(scores):
            return NOTHING
        o = self.options
        options = self._kaldi.FasterDecoderOptions(
            beam=o.beam, max_active=o.max_active, min_active=o.min_active
        )
        decoder = self._kaldi.FasterDecoder(self._fst, options)
        decoder.decode(self._kaldi.DecodableCtc(np.ascontiguousarray(scores, np.float32)))
        ended = decoder.reached_final()
        found, best = decoder.get_best_path(use_final_probs=ended)
        return replace(read_path(best), ended=ended) if found else LOST

    def nbest(self, scores: np.ndarray, count: int) -> list[Path]:
        """The best paths of a recording's (T, V) log-probabilities, no two of the same events.

        Args:
            scores: (T, V) float32 log-probabilities.
            count: how many at most.

        Returns:
            At least one, best first; without frames and labels.
        """
        if not len(scores):
            return [NOTHING]
        lattice = self.lattice(scores)
        return (distinct(lattice, count) if lattice is not None else []) or [LOST]

    def lattice(self, scores: np.ndarray) -> Any | None:
        """Kaldi's raw lattice of a recording: graph and frame costs, outputs are events."""
        o = self.options
        decoder = self._kaldi.LatticeSimpleDecoder(
            self._fst,
            self._kaldi.LatticeSimpleDecoderConfig(beam=o.beam, lattice_beam=o.lattice_beam),
        )
        if not decoder.decode(self._kaldi.DecodableCtc(np.ascontiguousarray(scores, np.float32))):
            return None
        final = np.isfinite(decoder.final_relative_cost())
        found, lattice = decoder.get_raw_lattice(use_final_probs=bool(final))
        return lattice if found else None


def distinct(lattice: Any, count: int) -> list[Path]:
    """The best paths of a lattice, no two of the same events, best first.

    Paths that say the same in other frames are one: it scores as the best of them.
    """
    kaldifst, _ = libraries()
    rows, ends = [], []
    for line in lattice.to_str(show_weight_one=True).splitlines():
        state, *arc, weight = line.split() if "," in line else [*line.split(), "0,0"]
        cost = sum(map(float, weight.split(",")))
        if arc:
            target, _, event = arc
            rows.append(f"{state} {target} {event} {event} {cost:.9g}")
        else:
            ends.append(f"{state} {cost:.9g}")
    first = f"{lattice.start} "
    rows.sort(key=lambda row: not row.startswith(first))  # where OpenFst starts
    fst = compiled([*rows, *ends])
    kaldifst.rmepsilon(fst)
    fst = kaldifst.shortest_path(kaldifst.determinize(fst), n=count)
    found = []
    for path in kaldifst.convert_nbest_to_vector(fst):
        _, events, _, cost = kaldifst.get_linear_symbol_sequence(path)
        found.append(Path(tuple(events), (), np.empty(0, np.int32), -cost.value))
    return sorted(found, key=lambda path: -path.score)


def read_path(lattice: Any) -> Path:
    """A lattice of one path."""
    events, starts, labels, cost = [], [], [], 0.0
    rows = {}
    for line in lattice.to_str(show_weight_one=True).splitlines():
        state, *rest = line.split()
        rows[int(state)] = rest
    state = lattice.start
    while True:
        *arc, weight = rows[state] if rows[state] else ["0,0"]
        cost += sum(map(float, weight.split(",")))
        if not arc:
            return Path(tuple(events), tuple(starts), np.array(labels, np.int32), -cost)
        state, label, output = map(int, arc)
        if output:
            events.append(output)
            starts.append(len(labels))
        if label:
            labels.append(label - 1)


def openfst(graph: Graph) -> Any:
    """A graph for OpenFst: labels are one higher, costs are negated scores."""
    arcs = graph.arcs
    columns = (arcs.source, arcs.target, arcs.label + 1, arcs.output, -arcs.score)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    lines = [f"{s} {t} {label} {out} {cost:.9g}" for s, t, label, out, cost in rows]
    ends = np.flatnonzero(np.isfinite(arcs.final))
    lines += [f"{s} {-arcs.final[s]:.9g}" for s in ends.tolist()]
    return compiled(lines)
