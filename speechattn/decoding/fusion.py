"""Shallow fusion: language models, hot words and graphs that a search reads beside the models."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding.boosting import ContextGraph
from speechattn.decoding.fst.decode import DecodingGraph
from speechattn.decoding.fst.graph import ARCS, Graph
from speechattn.decoding.fst.word_lm import WordLm
from speechattn.errors import ConfigError
from speechattn.lm.directory import WEIGHTS, load_lm
from speechattn.lm.ngram import NgramLm
from speechattn.lm.transformer import TransformerLm
from speechattn.units import UNK


@dataclass(frozen=True)
class Fusion:
    """What a search reads beside the models, in the models' units. The search has the weights.

    Attributes:
        lm: a Transformer language model in evaluation mode.
        ngram: an n-gram model.
        hot_words: phrases that are made more probable.
        graph: a decoding graph: what may be said at all.
        sources: SHA-256 of the files that these come from, by name.
    """

    lm: TransformerLm | None = None
    ngram: NgramLm | None = None
    hot_words: ContextGraph | None = None
    graph: DecodingGraph | None = None
    sources: dict[str, str] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "Fusion":
        """Return the same on a device."""
        return replace(
            self,
            lm=self.lm and self.lm.to(device),
            ngram=self.ngram and self.ngram.to(device),
            hot_words=self.hot_words and self.hot_words.to(device),
        )


NO_FUSION: Fusion = Fusion()


def read_fusion(
    tokenizer: Tokenizer,
    *,
    ngram: str | Path | None = None,
    hot_words: str | Path | None = None,
    lm: str | Path | None = None,
    graph: str | Path | None = None,
    graph_ngram: str | Path | None = None,
) -> Fusion:
    """Read language models, hot words and a graph from files.

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
        search = DecodingGraph(loaded, larger)
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
    return Fusion(transformer, ngrams, phrases, search, sources)


def _checksum(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_hot_words(tokenizer: Tokenizer, path: str | Path) -> ContextGraph:
    """Read a file of hot words; see `read_fusion`."""
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
