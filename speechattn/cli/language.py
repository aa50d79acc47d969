"""The commands that make language models and decoding graphs."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from speechattn.cli.common import Overrides, Tokens, read_config
from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts."""

    text: Annotated[
        tuple[Path, ...], "files with a sentence a line, or Lhotse cuts, whose transcripts are read"
    ]
    tokens: Tokens
    valid_text: Annotated[tuple[Path, ...], "texts to print the perplexity of"] = ()


def ngram(
    texts: Texts,
    *,
    output: Annotated[Path, "ARPA file to write, gzipped if its name ends in .gz"],
    order: Annotated[int, "units of the longest n-gram"] = 4,
    min_count: Annotated[
        int, "leave out n-grams of three units and more that occur less often"
    ] = 1,
) -> None:
    """Count an n-gram language model of units into an ARPA file."""
    from speechattn.lm.ngram_training import train_ngram

    options = {"order": order, "min_count": min_count, "valid_text": texts.valid_text}
    train_ngram(texts.text, texts.tokens, output, **options)


def train_lm(
    texts: Texts,
    *,
    config: Annotated[Path, "YAML of the experiment"],
    exp: Annotated[Path, "folder of the experiment; the model is EXP/lm"],
    best: Annotated[int, "number of epochs to average"] = 5,
    overrides: Overrides = (),
) -> None:
    """Train a Transformer language model on text."""
    from speechattn.training.lm.run import train_lm

    sections = read_config(config, overrides)
    train_lm(sections, texts.text, texts.tokens, exp, valid_text=texts.valid_text, best=best)


def graph(
    *,
    tokens: Tokens,
    output: Annotated[Path, "folder for the graph"],
    text: Annotated[
        tuple[Path, ...],
        "files with a sentence a line, or Lhotse cuts, for the words and their n-grams",
    ] = (),
    units: Annotated[
        bool, "take the tokenizer's units as words, as the loss LatticeFreeMmi needs"
    ] = False,
    segmented: Annotated[bool, "spaces divide the words of ideographs too"] = False,
    max_words: Annotated[int, "size of the lexicon, the most frequent words"] = 200_000,
    lexicon: Annotated[
        Path | None, "lines `word unit unit ...` (default: the words of --text as they are spelled)"
    ] = None,
    arpa: Annotated[Path | None, "n-gram model of words (default: counted from --text)"] = None,
    order: Annotated[int, "words of the longest n-gram"] = 3,
    min_count: Annotated[
        int, "leave out n-grams of three words and more that occur less often"
    ] = 1,
    topology: Annotated[
        Literal["standard", "modified"],
        "of CTC; the modified one needs no blank between equal units",
    ] = "standard",
) -> None:
    """Build a decoding graph of CTC, a lexicon and an n-gram model of words."""
    from speechattn.data.tokenizers import Tokenizer
    from speechattn.decoding.fst.build import build_graph
    from speechattn.decoding.fst.lexicon import Lexicon, most_frequent
    from speechattn.lm.texts import read_texts
    from speechattn.lm.word_ngram import split_words, train_word_ngram

    tokenizer = Tokenizer.load(tokens)
    sentences = [
        [tokenizer.tokens[unit] for unit in tokenizer.encode(line)]
        if units
        else split_words(line, segmented)
        for line in read_texts(text)
    ]
    if units:
        words = Lexicon.of_units(tokenizer)
    elif lexicon is not None:
        words = Lexicon.read(lexicon, tokenizer)
    elif sentences:
        words = Lexicon.spelled(most_frequent(sentences, max_words), tokenizer)
    else:
        raise ConfigError("which words? Give --lexicon, or --text to take them from")
    if arpa is None and sentences:
        output.mkdir(parents=True, exist_ok=True)
        arpa = output / "words.arpa"
        train_word_ngram(sentences, words.words, arpa, order=order, min_count=min_count)
    build_graph(words, tokenizer, output, arpa, topology)


def draw(
    graph: Annotated[Path, "folder that `speechattn graph` made"],
    picture: Annotated[Path, "file to write: .dot, or with Graphviz installed .svg, .pdf or .png"],
    *,
    tokens: Tokens,
) -> None:
    """Draw a decoding graph of a few words."""
    from speechattn.decoding.fst.dot import draw_graph

    draw_graph(graph, picture, tokens)
    logger.info("written to %s", picture)
