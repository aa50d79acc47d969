"""Shallow fusion: what scores hypotheses beside the models that hear or see."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding.boosting import BoostScorer, ContextGraph
from speechattn.decoding.fst.decode import GraphDecoder
from speechattn.decoding.fst.graph import ARCS, Graph
from speechattn.decoding.fst.word_lm import WordLm
from speechattn.decoding.options import GRAPH, DecodeOptions
from speechattn.decoding.scorers import Scorer
from speechattn.errors import ConfigError
from speechattn.lm.directory import WEIGHTS, load_lm
from speechattn.lm.ngram import NgramLm
from speechattn.lm.scorers import InternalLmScorer, LmScorer, NgramScorer
from speechattn.lm.transformer import TransformerLm
from speechattn.model.output import ModelOutput
from speechattn.units import UNK

# Methods whose search neither language models nor hot words change; what the graph's has found, a
# language model can still rank anew.
DEAF = ("ctc_greedy", *GRAPH, "transducer_greedy")


@dataclass(frozen=True)
class ShallowFusion:
    """Language models and hot words, of the models' units. Their weights are decode options.

    Attributes:
        lm: a Transformer language model in evaluation mode.
        ngram: an n-gram model.
        hot_words: phrases that are made more probable.
        graph: what may be said at all, for the methods `ctc_graph` and `ctc_graph_rescore`.
        sources: SHA-256 of the files that these come from, by name.
    """

    lm: TransformerLm | None = None
    ngram: NgramLm | None = None
    hot_words: ContextGraph | None = None
    graph: GraphDecoder | None = None
    sources: dict[str, str] = field(default_factory=dict)

    def check(self, options: DecodeOptions, vocab_size: int) -> None:
        """Whether each weight has its model, and each model its units.

        Raises:
            ConfigError: it names the option.
        """
        if options.lm_weight > 0 and options.lm_rescore_weight > 0:
            raise ConfigError(
                "decode options lm_weight and lm_rescore_weight: the language model would count "
                "twice; set one of them to 0"
            )
        if (self.graph is None) == (options.method in GRAPH):
            raise ConfigError(
                "a decoding graph (--graph DIR) and the decode option method ctc_graph go together"
            )
        larger = self.graph is not None and self.graph.lm is not None
        if larger != (options.graph_ngram_weight > 0):
            raise ConfigError(
                "a larger language model of the graph's words (--graph-ngram FILE.arpa) and the "
                "decode option graph_ngram_weight go together"
            )
        if self.graph is not None and self.graph.graph.vocab_size != vocab_size:
            raise ConfigError(
                f"the model has {vocab_size} units, and a decoding graph of "
                f"{self.graph.graph.vocab_size} cannot go with it"
            )
        lm = "lm_rescore_weight" if options.lm_rescore_weight > 0 else "lm_weight"
        parts = (
            (lm, self.lm, "a Transformer language model (--lm DIR)"),
            ("ngram_weight", self.ngram, "an n-gram model (--ngram FILE.arpa)"),
            ("hot_words_weight", self.hot_words, "hot words (--hot-words FILE)"),
        )
        for option, model, what in parts:
            weight = getattr(options, option)
            if weight > 0 and model is None:
                raise ConfigError(f"decode option {option}: {weight:g} needs {what}")
            late = option == "lm_rescore_weight" and options.method in GRAPH
            if model is not None and (weight == 0 or options.method in DEAF and not late):
                raise ConfigError(
                    f"{what} would change nothing: decode option {option} is {weight:g} and method "
                    f"{options.method}"
                )
            if model is not None and model.vocab_size != vocab_size:
                raise ConfigError(
                    f"decode option {option}: the model has {vocab_size} units, and {what} of "
                    f"{model.vocab_size} cannot go with it"
                )

    def to(self, device: torch.device | str) -> "ShallowFusion":
        """The same on a device."""
        parts = (self.lm, self.ngram, self.hot_words)
        parts = (None if part is None else part.to(device) for part in parts)
        return ShallowFusion(*parts, self.graph, self.sources)

    def scorers(
        self, options: DecodeOptions, evidence: Sequence[ModelOutput]
    ) -> dict[str, tuple[Scorer, float]]:
        """Scorers of all tokens with their weights, by name; those of weight 0 left out."""
        batch = len(evidence[0].lengths)
        found: dict[str, tuple[Scorer, float]] = {}
        if options.lm_weight > 0:
            found["lm"] = LmScorer(self.lm, batch), options.lm_weight
        if options.ngram_weight > 0:
            found["ngram"] = NgramScorer(self.ngram, batch), options.ngram_weight
        if options.hot_words_weight > 0:
            found["hot_words"] = BoostScorer(self.hot_words, batch), options.hot_words_weight
        if options.internal_lm_weight > 0:
            for e in evidence:
                scorer = InternalLmScorer(e.decoder, batch)
                found[e.label("internal_lm")] = scorer, -options.internal_lm_weight * e.weight
        return found


NOTHING = ShallowFusion()


def read_fusion(
    tokenizer: Tokenizer,
    ngram: str | Path | None = None,
    hot_words: str | Path | None = None,
    lm: str | Path | None = None,
    graph: str | Path | None = None,
    graph_ngram: str | Path | None = None,
) -> ShallowFusion:
    """Language models and hot words from files.

    Args:
        tokenizer: of the models that they go with.
        ngram: an ARPA file of the tokenizer's units.
        hot_words: a text file, a phrase a line; behind a tab its score a token, 1 by default.
        lm: the directory of a Transformer language model of the tokenizer's units.
        graph: the folder of a decoding graph of the tokenizer's units.
        graph_ngram: a larger ARPA file of the graph's words.

    Raises:
        ConfigError: a file cannot be read, or says what the tokenizer has no units for.
    """
    transformer = ngrams = phrases = search = None
    if lm is not None:
        transformer, of_lm = load_lm(lm)
        if of_lm.tokens != tokenizer.tokens:
            raise ConfigError(
                f"{lm}: its units are not those of the model; train it with the model's tokenizer"
            )
    if ngram is not None:
        ngrams = NgramLm.from_arpa(ngram, tokenizer.tokens)
    if hot_words is not None:
        phrases = read_hot_words(tokenizer, hot_words)
    if graph is not None:
        loaded = Graph.load(graph)
        larger = None if graph_ngram is None else WordLm(graph_ngram, loaded.words)
        search = GraphDecoder(loaded, larger)
    elif graph_ngram is not None:
        raise ConfigError(f"{graph_ngram}: is for a decoding graph; give one (--graph DIR)")
    files = {
        "lm": lm if lm is None else Path(lm) / WEIGHTS,
        "ngram": ngram,
        "hot_words": hot_words,
        "graph": graph if graph is None else Path(graph) / ARCS,
        "graph_ngram": graph_ngram,
    }
    sources = {name: _checksum(path) for name, path in files.items() if path is not None}
    return ShallowFusion(transformer, ngrams, phrases, search, sources)


def _checksum(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_hot_words(tokenizer: Tokenizer, path: str | Path) -> ContextGraph:
    """The graph of a file of hot words; see `read_fusion`."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    phrases, scores = [], []
    for number, line in enumerate(lines, 1):
        phrase, _, score = line.partition("\t")
        if not phrase.strip():
            continue
        try:
            scores.append(float(score) if score.strip() else 1.0)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: {score!r} is no score") from error
        tokens = tokenizer.encode(phrase.strip())
        if UNK in tokens:
            raise ConfigError(
                f"{path}, line {number}: the tokenizer has no units for all of {phrase.strip()!r}"
            )
        phrases.append(tokens)
    if not phrases:
        raise ConfigError(f"{path}: no hot words in it")
    return ContextGraph.build(phrases, tokenizer.vocab_size, scores=scores)
