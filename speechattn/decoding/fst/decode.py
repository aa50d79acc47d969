"""Batches of utterances over a decoding graph."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.k2_search import K2Search
from speechattn.decoding.fst.k2py_search import K2pySearch, PrunedOptions
from speechattn.decoding.fst.kaldi_search import KaldiOptions, KaldiSearch
from speechattn.decoding.fst.lattice import Lattice, confidences, posteriors
from speechattn.decoding.fst.nbest import nbest
from speechattn.decoding.fst.onsets import delayed, with_onsets
from speechattn.decoding.fst.path import LOST, NOTHING, Path
from speechattn.decoding.fst.word_lm import WordLm
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.options import DecodeOptions

Search = KaldiSearch | K2pySearch | K2Search
SEARCHES = {"kaldi": KaldiSearch, "k2py": K2pySearch, "k2": K2Search}


class GraphDecoder:
    """A graph with the searches over it, each made when it is first asked for.

    Args:
        graph: what may be said.
        lm: a larger language model of the graph's words.
    """

    def __init__(self, graph: Graph, lm: WordLm | None = None):
        self.graph = graph
        self.lm = lm
        self._searches: dict[tuple[str, bool], Search] = {}

    def search(self, options: DecodeOptions) -> Search:
        """The search that decode options name, as wide as they say.

        Raises:
            ConfigError: its library is not installed.
        """
        penalised = options.graph_delay_penalty > 0
        key = options.graph_library, penalised
        if key not in self._searches:
            graph = with_onsets(self.graph) if penalised else self.graph
            self._searches[key] = SEARCHES[options.graph_library](graph)
        beam, most = options.graph_beam, options.graph_states
        lattice_beam = lattice_beam_of(options)
        if options.graph_library == "kaldi":
            width = KaldiOptions(beam, lattice_beam, max_active=most)
        else:
            width = PrunedOptions(beam, lattice_beam, min(30, most), most)
        return self._searches[key].with_options(width)


def needs_lattice(options: DecodeOptions) -> bool:
    """Whether the best path alone does not do."""
    return options.nbest > 1 or options.graph_lattice_beam > 0 or options.graph_ngram_weight > 0


def lattice_beam_of(options: DecodeOptions) -> float:
    """The one that is asked for, or the usual one."""
    return options.graph_lattice_beam or KaldiOptions.lattice_beam


def graph_search(
    log_probs: Tensor, lengths: Tensor, decoder: GraphDecoder, options: DecodeOptions
) -> list[list[Hypothesis]]:
    """The best sentences that a graph allows.

    Args:
        log_probs: (B, T, V) of CTC.
        lengths: (B,) int64.
        decoder: of the graph.
        options: those whose names begin with `graph_`, and `nbest`.

    Returns:
        For each utterance at least one hypothesis, best first, with the scores of its best
        sequence of frames, `ctc` and `graph`, or `graph_ngram` where a larger language model was
        asked for; with confidences where paths were kept.
    """
    search = decoder.search(options)
    rows = [
        row[:length] for row, length in zip(log_probs.float().cpu().numpy(), lengths, strict=True)
    ]
    if options.graph_delay_penalty > 0:
        rows = [delayed(row, options.graph_delay_penalty) for row in rows]
    rows = [np.ascontiguousarray(row / options.graph_weight) for row in rows]
    if needs_lattice(options):
        lattices = search.lattices(rows)
        return [found(lattice, decoder, options) for lattice in lattices]
    paths = [search.search(row) for row in rows]
    return [[hypothesis(path, decoder.graph, options)] for path in paths]


def found(
    lattice: Lattice | None, decoder: GraphDecoder, options: DecodeOptions
) -> list[Hypothesis]:
    """The best sentences of a lattice."""
    if lattice is None:
        return [hypothesis(LOST, decoder.graph, options, ())]
    if not len(lattice):
        return [hypothesis(NOTHING, decoder.graph, options, ())]
    if options.graph_ngram_weight > 0:
        share = options.graph_ngram_weight / options.graph_weight
        lattice = decoder.lm.rescored(lattice, decoder.graph, share)
    share = posteriors(lattice, options.graph_weight)
    return [
        hypothesis(path, decoder.graph, options, confidences(lattice, path, share))
        for path in nbest(lattice, options.nbest)
    ]


def hypothesis(
    path: Path, graph: Graph, options: DecodeOptions, sure: Sequence[float] | None = None
) -> Hypothesis:
    """A path in units of the model, its scores in natural logs; 0 where a search lost all."""
    if not np.isfinite(path.score):
        path = replace(path, score=0.0, graph=0.0)
    weight, larger = options.graph_weight, options.graph_ngram_weight
    scores = {"ctc": weight * (path.score - path.graph)}
    if larger > 0:
        scores["graph_ngram"] = path.graph * weight / larger
    else:
        scores["graph"] = path.graph
    return Hypothesis(
        graph.units(path.events),
        weight * path.score,
        scores,
        list(path.starts),
        None if sure is None else list(sure),
    )
