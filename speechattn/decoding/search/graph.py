"""Searches over a decoding graph, with lattices and what ranks them anew."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch

from speechattn.decoding.fst.decode import DecodingGraph, SearchWidth
from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.lattice import Lattice, confidences, posteriors
from speechattn.decoding.fst.nbest import nbest as best_paths
from speechattn.decoding.fst.online_search import OnlineSearch
from speechattn.decoding.fst.onsets import delayed
from speechattn.decoding.fst.path import EMPTY_PATH, LOST_PATH, GraphPath
from speechattn.decoding.fusion import Fusion
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.search.base import NbestSearch, SearchedModel
from speechattn.decoding.streaming.base import StreamLimits, StreamSearch
from speechattn.decoding.streaming.graph import GraphStream
from speechattn.errors import ConfigError, require
from speechattn.model.output import ModelOutput

LATTICE_BEAM = 8.0  # where a lattice is needed and no beam is given


@dataclass(frozen=True, kw_only=True)
class GraphSearch(NbestSearch):
    """The most probable sentence of a decoding graph by CTC; see `speechattn graph`.

    Attributes:
        weight: weight of the scores of the graph's words, beside those of CTC.
        beam: paths that are this much worse than the best of their frame are dropped.
        max_states: states of a frame that are kept at most.
        library: what searches: `kaldi` (kaldi-decoder), or `k2`, which searches a batch at once
            and has to be installed. Streams have a search of their own.
        lattice_beam: above 0, paths that are this much worse than the best are kept, and the
            confidence of a token is the share of them that has it. Where it is 0 and several
            hypotheses or `ngram_weight` ask for a lattice, it is 8.
        ngram_weight: weight of a larger n-gram model of words (--graph-ngram), whose scores
            replace the graph's in the lattice.
        delay_penalty: subtracted from a token's score for each frame by which it begins after the
            middle of the utterance, and added before it: earlier tokens, as in delay-penalised
            CTC (2305.11539).
    """

    needs_graph: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    weight: float = 1.0
    beam: float = 12.0
    max_states: int = 2000
    library: Literal["kaldi", "k2"] = "kaldi"
    lattice_beam: float = 0.0
    ngram_weight: float = 0.0
    delay_penalty: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight", "beam", "max_states"):
            value = getattr(self, name)
            require(value > 0, f"search.{name}", value, "above 0")
        for name in ("lattice_beam", "ngram_weight", "delay_penalty"):
            self._require_weight(name)
        require(self.library in ("kaldi", "k2"), "search.library", self.library, "kaldi or k2")

    def check_fusion(self, fusion: Fusion, vocab_size: int) -> None:
        super().check_fusion(fusion, vocab_size)
        if (fusion.graph.lm is not None) != (self.ngram_weight > 0):
            raise ConfigError(
                "a larger language model of the graph's words (--graph-ngram FILE.arpa) and "
                "search.ngram_weight go together"
            )

    def _check_resource(self, resource, what: str, options: Sequence[str], vocab_size: int) -> None:
        # `ngram_weight` is of the words' model, which `check` looks at.
        options = [name for name in options if name != "ngram_weight"]
        super()._check_resource(resource, what, options, vocab_size)

    def check_stream(self) -> None:
        super().check_stream()
        for name in ("lattice_beam", "ngram_weight", "delay_penalty"):
            self._require_off_in_stream(name)

    def first_pass(
        self, outputs: Sequence[ModelOutput], fusion: Fusion, nbest: int
    ) -> list[list[Hypothesis]]:
        (output,) = outputs
        lengths = output.lengths.tolist()
        rows = [
            row[:length]
            for row, length in zip(output.log_probs.float().cpu().numpy(), lengths, strict=True)
        ]
        if self.delay_penalty > 0:
            rows = [delayed(row, self.delay_penalty) for row in rows]
        rows = [np.ascontiguousarray(row / self.weight) for row in rows]
        graph = fusion.graph
        width = SearchWidth(self.beam, self.lattice_beam or LATTICE_BEAM, self.max_states)
        search = graph.search(self.library, width, penalised=self.delay_penalty > 0)
        if nbest > 1 or self.lattice_beam > 0 or self.ngram_weight > 0:
            return [self._of_lattice(lattice, graph, nbest) for lattice in search.lattices(rows)]
        return [[self._hypothesis(search.search(row), graph.graph)] for row in rows]

    def start_stream(
        self, model: SearchedModel, device: torch.device, fusion: Fusion, limits: StreamLimits
    ) -> StreamSearch:
        graph = fusion.graph.graph
        search = OnlineSearch(graph, self.beam, self.max_states)
        settle = limits.settle_frames(None)
        return GraphStream(search, graph, self.weight, settle, limits.pending_frames)

    def _of_lattice(
        self, lattice: Lattice | None, graph: DecodingGraph, nbest: int
    ) -> list[Hypothesis]:
        if lattice is None:
            return [self._hypothesis(LOST_PATH, graph.graph, ())]
        if not len(lattice):
            return [self._hypothesis(EMPTY_PATH, graph.graph, ())]
        if self.ngram_weight > 0:
            share = self.ngram_weight / self.weight
            lattice = graph.lm.rescored(lattice, graph.graph, share)
        shares = posteriors(lattice, self.weight)
        return [
            self._hypothesis(path, graph.graph, confidences(lattice, path, shares))
            for path in best_paths(lattice, nbest)
        ]

    def _hypothesis(
        self, path: GraphPath, graph: Graph, confidence: Sequence[float] | None = None
    ) -> Hypothesis:
        """Return a path in units of the model, its scores in natural logs; 0 of a lost one."""
        if not np.isfinite(path.score):
            path = replace(path, score=0.0, graph=0.0)
        scores = {"ctc": self.weight * (path.score - path.graph)}
        if self.ngram_weight > 0:
            scores["graph_ngram"] = path.graph * self.weight / self.ngram_weight
        else:
            scores["graph"] = path.graph
        return Hypothesis(
            graph.units(path.events),
            self.weight * path.score,
            scores,
            list(path.starts),
            None if confidence is None else list(confidence),
        )
