"""A decoding graph with the engines that search it."""

from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.k2_search import K2Search
from speechattn.decoding.fst.kaldi_search import KaldiSearch
from speechattn.decoding.fst.onsets import with_onsets
from speechattn.decoding.fst.width import SearchWidth
from speechattn.decoding.fst.word_lm import WordLm

ENGINES = {"kaldi": KaldiSearch, "k2": K2Search}


class DecodingGraph:
    """A graph with the engines over it, each built when it is first asked for.

    `lm` is a larger language model of the graph's words.
    """

    def __init__(self, graph: Graph, lm: WordLm | None = None):
        self.graph = graph
        self.lm = lm
        self._engines: dict[tuple[str, bool], KaldiSearch | K2Search] = {}

    def search(
        self, library: str, width: SearchWidth, penalised: bool = False
    ) -> KaldiSearch | K2Search:
        """Return an engine.

        Args:
            library: kaldi or k2.
            width: how much it keeps.
            penalised: first frames of tokens have arcs of their own, for a delay penalty.

        Raises:
            ConfigError: the library is not installed.
        """
        key = library, penalised
        if key not in self._engines:
            graph = with_onsets(self.graph) if penalised else self.graph
            self._engines[key] = ENGINES[library](graph)
        return self._engines[key].with_width(width)
