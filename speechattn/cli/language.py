"""The commands that make language models and decoding graphs."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from speechattn.cli.common import Overrides, read_config
from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts.

    Args:
        text: files with a sentence a line, or Lhotse cuts, whose transcripts are read.
        tokens: folder of the tokenizer.
        valid_text: texts to print the perplexity of.
    """

    text: tuple[Path, ...]
    tokens: Path
    valid_text: tuple[Path, ...] = ()


def ngram(texts: Texts, *, output: Path, order: int = 4, min_count: int = 1) -> None:
    """Count an n-gram language model of units into an ARPA file.

    Args:
        output: ARPA file to write, gzipped if its name ends in .gz.
        order: units of the longest n-gram.
        min_count: leave out n-grams of three units and more that occur less often.
    """
    from speechattn.lm.ngram_training import train_ngram

    options = {"order": order, "min_count": min_count, "valid_text": texts.valid_text}
    train_ngram(texts.text, texts.tokens, output, **options)


def train_lm(
    texts: Texts, *, config: Path, exp: Path, best: int = 5, overrides: Overrides = ()
) -> None:
    """Train a Transformer language model on text.

    Args:
        config: YAML of the experiment.
        exp: folder of the experiment; the model is EXP/lm.
        best: number of epochs to average.
        overrides: change the configuration, e.g. --set training.max_epochs=5; may be repeated.
    """
    from speechattn.training.lm.run import train_lm

    sections = read_config(config, overrides)
    train_lm(sections, texts.text, texts.tokens, exp, valid_text=texts.valid_text, best=best)


def graph(
    *, tokens: Path, output: Path, text: tuple[Path, ...] = (), units: bool = False,
    segmented: bool = False, max_words: int = 200_000, lexicon: Path | None = None,
    arpa: Path | None = None, order: int = 3, min_count: int = 1,
    topology: Literal["standard", "modified"] = "standard"
) -> None:  # fmt: skip
    """Build a decoding graph of CTC, a lexicon and an n-gram model of words.

    Args:
        tokens: folder of the tokenizer.
        output: folder for the graph.
        text: files with a sentence a line, or Lhotse cuts, for the words and their n-grams.
        units: take the tokenizer's units as words, as the loss LatticeFreeMmi needs.
        segmented: spaces divide the words of ideographs too.
        max_words: size of the lexicon, the most frequent words.
        lexicon: lines `word unit unit ...` (default: the words of --text as they are spelled).
        arpa: n-gram model of words (default: counted from --text).
        order: words of the longest n-gram.
        min_count: leave out n-grams of three words and more that occur less often.
        topology: of CTC; the modified one needs no blank between equal units.
    """
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


def draw(graph: Path, picture: Path, *, tokens: Path) -> None:
    """Draw a decoding graph of a few words.

    Args:
        graph: folder that `speechattn graph` made.
        picture: file to write: .dot, or with Graphviz installed .svg, .pdf or .png.
        tokens: folder of the tokenizer.
    """
    from speechattn.decoding.fst.dot import draw_graph

    draw_graph(graph, picture, tokens)
    logger.info("written to %s", picture)
