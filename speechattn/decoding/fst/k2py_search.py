"""Search by k2's pruned intersection, as `k2py` packages it: no torch, no matching wheel.

Povey et al., k2 (github.com/k2-fsa/k2), `intersect_dense_pruned.cu`, in its online form: frames may
come in pieces.

Legend: T frames, V units.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.path import NOTHING, Path
from speechattn.errors import ConfigError


@dataclass(frozen=True)
class PrunedOptions:
    """How wide the search is.

    Attributes:
        search_beam: partial paths that are this much worse than the best of their frame are
            dropped.
        output_beam: paths that are this much worse than the best are no part of the lattice.
        min_active: states that are kept in a frame whatever their scores.
        max_active: states that are kept in a frame at most.
    """

    search_beam: float = 20.0
    output_beam: float = 8.0
    min_active: int = 30
    max_active: int = 10000

    def __post_init__(self) -> None:
        if self.search_beam <= 0 or self.output_beam <= 0:
            raise ConfigError("search_beam and output_beam have to be above 0")
        if not 0 < self.min_active <= self.max_active:
            raise ConfigError(
                f"min_active {self.min_active} and max_active {self.max_active}: the first has to "
                "be above 0 and not above the second"
            )


class K2pySearch:
    """Decodes one recording after another over the same graph.

    Args:
        graph: what may be said.
        options: how wide the search is.

    Raises:
        ConfigError: k2py is not installed.
    """

    def __init__(self, graph: Graph, options: PrunedOptions | None = None):
        try:
            import k2py
        except ImportError as error:
            raise ConfigError("this search needs k2py: pip install 'speechattn[fst]'") from error
        self._k2py = k2py
        self.graph = graph
        self.options = options or PrunedOptions()
        text, last = k2_text(graph)
        self._fsa = k2py.CreateFsaVecFromStr(text, final_state=last)

    def with_options(self, options: PrunedOptions) -> "K2pySearch":
        """The same graph, searched otherwise."""
        other = copy(self)
        other.options = options
        return other

    def search(self, scores: np.ndarray) -> Path:
        """The best path of a recording's (T, V) log-probabilities."""
        stream = self.stream()
        stream.accept(scores)
        labels = stream.finish()
        return along(self.graph, labels, scores) if len(labels) else NOTHING

    def lattices(self, scores: Sequence[np.ndarray]) -> NoReturn:
        """k2py tells the best path only.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "decode option graph_library: k2py tells the best path only; use kaldi or k2 for "
            "several hypotheses, confidences of words and larger language models"
        )

    def stream(self) -> "Stream":
        """A recording whose frames come in pieces."""
        o = self.options
        return Stream(
            self._k2py.OnlineDenseIntersecter(
                self._fsa["fsa"],
                self._fsa["aux_labels"],
                o.search_beam,
                o.output_beam,
                o.min_active,
                o.max_active,
            )
        )


class Stream:
    """One recording; see `K2pySearch`."""

    def __init__(self, intersecter: Any):
        self._intersecter = intersecter
        self._frames = 0

    def accept(self, scores: np.ndarray) -> None:
        """The next frames (T, V)."""
        if len(scores):
            self._intersecter.decode(np.ascontiguousarray(scores, np.float32), False)
            self._frames += len(scores)

    def finish(self) -> np.ndarray:
        """(T,) int32, the units and blanks of the best path."""
        if not self._frames:
            return np.empty(0, np.int32)
        _, (labels,) = self._intersecter.finish()
        return np.array(labels[: self._frames], np.int32)


def along(graph: Graph, labels: np.ndarray, scores: np.ndarray) -> Path:
    """The best path whose frames have these labels.

    k2py tells neither the score of its path nor an event that follows itself at once, as it may in
    the topology `modified`; both are found by going along the path again.

    Args:
        graph: what was searched.
        labels: (T,) int32.
        scores: (T, V).
    """
    arcs, first = graph.arcs, graph.arcs.first()
    ways = {0: (0.0, None)}  # by state its score, and the events that led there, the last one first
    for t, label in enumerate(labels.tolist()):
        onward: dict = {}
        for state, (total, said) in ways.items():
            here = np.arange(first[state], first[state + 1])
            for i in here[arcs.label[here] == label].tolist():
                score, target = total + float(arcs.score[i]), int(arcs.target[i])
                if target not in onward or score > onward[target][0]:
                    event = int(arcs.output[i])
                    onward[target] = score, (event, t, said) if event else said
        ways = onward
    ends = {s: (total + float(arcs.final[s]), said) for s, (total, said) in ways.items()}
    ended = any(np.isfinite(total) for total, _ in ends.values())
    found, said = max((ends if ended else ways).values(), key=lambda way: way[0])
    events, starts = [], []
    while said is not None:
        event, start, said = said
        events.append(event)
        starts.append(start)
    frames = float(scores[np.arange(len(labels)), labels].sum(dtype=np.float64))
    said = tuple(events[::-1]), tuple(starts[::-1]), labels
    return Path(*said, found + frames, found, ended)


def k2_text(graph: Graph) -> tuple[str, int]:
    """A graph as k2 reads it from text, and its last state, into which arcs of label -1 lead."""
    arcs = graph.arcs
    last = arcs.states
    ends = np.flatnonzero(np.isfinite(arcs.final))
    columns = [
        np.concatenate([arcs.source, ends]),
        np.concatenate([arcs.target, np.full(len(ends), last)]),
        np.concatenate([arcs.label, np.full(len(ends), -1)]),
        np.concatenate([arcs.output, np.full(len(ends), -1)]),
        np.concatenate([arcs.score, arcs.final[ends]]),
    ]
    order = np.argsort(columns[0], kind="stable")
    rows = zip(*(c[order].tolist() for c in columns), strict=True)
    lines = [f"{s} {t} {label} {out} {score:.9g}" for s, t, label, out, score in rows]
    return "\n".join([*lines, str(last)]), last
