"""The commands that make models."""

import argparse
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

from speechattn.cli.common import (
    add_allow,
    add_noise,
    add_overrides,
    add_set,
    named,
    read_config,
    read_noise,
)
from speechattn.cli.data import SYNTHETIC_MARK
from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)


def add_training_commands(command) -> None:
    """train, average, train-lm, ngram, combine, import-checkpoint."""
    sub = command("train", train, "train a model, or go on training it")
    sub.add_argument("--config", type=Path, required=True)
    sub.add_argument("--train-cuts", type=Path, required=True)
    sub.add_argument("--valid-cuts", type=Path, required=True)
    sub.add_argument("--tokens", type=Path, required=True, help="folder of the tokenizer")
    sub.add_argument("--crops", type=Path, help="folder of mouth crops")
    sub.add_argument("--noise", type=Path, help="data.noise: the file that AddNoise mixes in")
    sub.add_argument("--exp", type=Path, required=True, help="the experiment's folder")
    sub.add_argument(
        "--init",
        type=Path,
        action="append",
        default=[],
        metavar="MODEL",
        help="model directory to start from; may be repeated, the first that has a part gives it",
    )
    sub.add_argument(
        "--renew-classifier",
        action="store_true",
        help="--init: CTC heads, decoder embedding and output begin anew; else they are taken over "
        "for the tokens that both have",
    )
    add_overrides(sub)

    sub = command("average", average, "average the best epochs into a model directory")
    sub.add_argument("--config", type=Path, required=True)
    sub.add_argument("--tokens", type=Path, required=True, help="folder of the tokenizer")
    sub.add_argument("--exp", type=Path, required=True, help="the experiment's folder")
    sub.add_argument("--best", type=int, default=5, help="how many epochs")
    sub.add_argument(
        "--data-dir", type=Path, help="the corpus; if it is synthetic the model says so"
    )
    add_overrides(sub)

    add_lm_commands(command)

    sub = command("combine", combine, "make one model of several that are searched together")
    sub.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="NAME=DIR",
        help="a model directory and its name in the ensemble; repeated",
    )
    sub.add_argument("--output", type=Path, required=True, help="model directory to make")
    sub.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="NAME=SHARE",
        help="of a model in the score; repeated, equal by default",
    )
    sub.add_argument("--cuts", type=Path, help="choose the weights on these cuts instead")
    sub.add_argument("--crops", type=Path, help="folder of mouth crops")
    sub.add_argument("--search", help="class of the search, or a YAML file; else the first model's")
    add_noise(sub, "with --cuts: sound to mix in, for as many utterances again")
    add_allow(sub, "the models")

    sub = command(
        "import-checkpoint",
        import_checkpoint,
        "make a model directory of another toolkit's checkpoint",
    )
    sub.add_argument(
        "--from",
        dest="source",
        required=True,
        choices=("espnet", "auto_avsr", "cnvsrc2023", "cnvsrc2024"),
    )
    sub.add_argument("src", type=Path, help="checkpoint, or an ESPnet folder with one .pth")
    sub.add_argument("dest", type=Path, help="model directory to make")
    sub.add_argument("--config", type=Path, help="its configuration; espnet: config.yaml beside it")
    sub.add_argument("--tokens", type=Path, help="its list of units, one a line")
    sub.add_argument("--bpe-model", type=Path, help="the SentencePiece model of its units")
    sub.add_argument("--decode", type=Path, help="a decode YAML of ESPnet's")


def add_lm_commands(command) -> None:
    """train-lm, ngram, graph, draw."""
    sub = command("train-lm", train_lm, "train a Transformer language model on text")
    sub.add_argument("--config", type=Path, required=True)
    add_texts(sub)
    sub.add_argument("--exp", type=Path, required=True, help="EXP/lm is the model that it makes")
    sub.add_argument("--best", type=int, default=5, help="how many epochs are averaged")
    add_set(sub)

    sub = command("ngram", ngram, "count an n-gram language model of units into ARPA")
    add_texts(sub)
    sub.add_argument("--order", type=int, default=4, help="units of the longest n-gram")
    sub.add_argument(
        "--min-count",
        type=int,
        default=1,
        help="n-grams of three units and more that are seen less often are left out",
    )
    sub.add_argument("--output", type=Path, required=True, help="ARPA file, gzipped if named .gz")

    sub = command("graph", graph, "build a decoding graph of CTC, a lexicon and an n-gram of words")
    sub.add_argument("--tokens", type=Path, required=True, help="folder of the tokenizer")
    sub.add_argument(
        "--text",
        type=Path,
        nargs="+",
        default=[],
        help="a sentence a line, or Lhotse cuts: words and n-gram model are taken from them",
    )
    sub.add_argument(
        "--units",
        action="store_true",
        help="the words are the model's units: what loss LatticeFreeMmi compares texts with",
    )
    sub.add_argument("--segmented", action="store_true", help="ideographs: spaces divide words")
    sub.add_argument("--max-words", type=int, default=200_000, help="the most frequent ones")
    sub.add_argument("--lexicon", type=Path, help="lines `word unit unit ...`; else as spelled")
    sub.add_argument("--arpa", type=Path, help="n-gram model of words; else counted from --text")
    sub.add_argument("--order", type=int, default=3, help="words of the longest n-gram")
    sub.add_argument(
        "--min-count",
        type=int,
        default=1,
        help="n-grams of three words and more that are seen less often are left out",
    )
    sub.add_argument("--topology", choices=("standard", "modified"), default="standard")
    sub.add_argument("--output", type=Path, required=True, help="folder of the graph")

    sub = command("draw", draw, "draw a decoding graph of a few words")
    sub.add_argument("graph", type=Path, help="folder that `speechattn graph` has made")
    sub.add_argument("picture", type=Path, help="FILE.dot to write, or FILE.svg with Graphviz")
    sub.add_argument("--tokens", type=Path, required=True, help="folder of the tokenizer")


def add_texts(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--text",
        type=Path,
        nargs="+",
        required=True,
        help="a sentence a line, or Lhotse cuts, whose transcripts are read",
    )
    sub.add_argument(
        "--valid-text", type=Path, nargs="+", default=[], help="to print the perplexity of"
    )
    sub.add_argument("--tokens", type=Path, required=True, help="folder of the tokenizer")


def train(args: Namespace) -> None:
    """speechattn train"""
    from speechattn.training import train

    config = read_config(args)
    if args.noise is not None:
        config["data"] = {**(config.get("data") or {}), "noise": str(args.noise)}
    train(
        config,
        args.train_cuts,
        args.valid_cuts,
        args.tokens,
        args.exp,
        crops=args.crops,
        allow=args.allow,
        init=args.init,
        renew_classifier=args.renew_classifier,
    )


def train_lm(args: Namespace) -> None:
    """speechattn train-lm"""
    from speechattn.training.lm.run import train_lm

    train_lm(
        read_config(args),
        args.text,
        args.tokens,
        args.exp,
        valid_text=args.valid_text,
        best=args.best,
    )


def ngram(args: Namespace) -> None:
    """speechattn ngram"""
    from speechattn.lm.ngram_training import train_ngram

    train_ngram(
        args.text,
        args.tokens,
        args.output,
        order=args.order,
        min_count=args.min_count,
        valid_text=args.valid_text,
    )


def graph(args: Namespace) -> None:
    """speechattn graph"""
    from speechattn.data.tokenizers.tokenizer import Tokenizer
    from speechattn.decoding.fst.build import build_graph
    from speechattn.decoding.fst.lexicon import Lexicon, most_frequent
    from speechattn.lm.texts import read_texts
    from speechattn.lm.word_ngram import split_words, train_word_ngram

    tokenizer = Tokenizer.load(args.tokens)
    texts = read_texts(args.text)
    if args.units:
        sentences = [[tokenizer.tokens[unit] for unit in tokenizer.encode(text)] for text in texts]
    else:
        sentences = [split_words(text, args.segmented) for text in texts]
    if args.units:
        lexicon = Lexicon.of_units(tokenizer)
    elif args.lexicon is not None:
        lexicon = Lexicon.read(args.lexicon, tokenizer)
    elif sentences:
        lexicon = Lexicon.spelled(most_frequent(sentences, args.max_words), tokenizer)
    else:
        raise ConfigError("which words? name a --lexicon, or --text that they are taken from")
    arpa = args.arpa
    if arpa is None and sentences:
        args.output.mkdir(parents=True, exist_ok=True)
        arpa = args.output / "words.arpa"
        train_word_ngram(sentences, lexicon.words, arpa, order=args.order, min_count=args.min_count)
    build_graph(lexicon, tokenizer, args.output, arpa, args.topology)


def draw(args: Namespace) -> None:
    """speechattn draw"""
    from speechattn.decoding.fst.dot import draw_graph

    draw_graph(args.graph, args.picture, args.tokens)
    logger.info("written to %s", args.picture)


def import_checkpoint(args: Namespace) -> None:
    """speechattn import-checkpoint"""
    from speechattn.importing import import_checkpoint

    folder = import_checkpoint(
        args.source, args.src, args.dest, args.config, args.tokens, args.bpe_model, args.decode
    )
    logger.info("written to %s", folder)


def average(args: Namespace) -> None:
    """speechattn average"""
    from speechattn.training import average

    meta: dict[str, Any] = {}
    if args.data_dir is not None:
        meta["corpus"] = args.data_dir.resolve().name
        meta["synthetic"] = (args.data_dir / SYNTHETIC_MARK).is_file()
    average(read_config(args), args.exp, args.tokens, args.best, meta=meta, allow=args.allow)


def combine(args: Namespace) -> None:
    """speechattn combine"""
    from speechattn.data.batches.dataset import read_cuts
    from speechattn.data.crops.store import CropStore
    from speechattn.decoding.config import chosen_search
    from speechattn.model.ensemble import Ensemble
    from speechattn.transcribe.combine import choose_weights, read_models, save_ensemble
    from speechattn.transcribe.manifests import CutBatches

    if args.weight and args.cuts is not None:
        raise ConfigError("--weight gives the shares and --cuts chooses them: leave one out")
    if args.noise is not None and args.cuts is None:
        raise ConfigError("--noise is mixed into the utterances of --cuts: give these too")
    folders = named(args.model, "--model")
    search = args.search and chosen_search({}, search=args.search, allow=args.allow)
    transcriber = read_models(folders, search or None, args.allow)
    recogniser = transcriber.recogniser
    meta: dict[str, Any] = {}
    if args.cuts is not None:
        store = CropStore(args.crops) if args.crops is not None else None
        cuts = read_cuts(args.cuts, recogniser.model.modalities, store)
        conditions = {"clean": CutBatches(recogniser, cuts, store)}
        if args.noise is not None:
            noisy = CutBatches(recogniser, cuts, store, read_noise(args))
            conditions[f"at {args.snr:g} dB"] = noisy
        _, meta["token_errors"] = choose_weights(recogniser, conditions)
    elif args.weight:
        try:
            weights = {k: float(v) for k, v in named(args.weight, "--weight").items()}
        except ValueError as error:
            raise ConfigError(f"--weight: {error}") from error
        recogniser.model.weights = Ensemble(recogniser.model.models, weights).weights
    save_ensemble(transcriber, folders, args.output, meta)
    weights = (f"{name} {weight:.3g}" for name, weight in recogniser.model.weights.items())
    logger.info("%s: weights %s", args.output, ", ".join(weights))
