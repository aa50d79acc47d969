"""The command line: one subcommand for each step from a folder of media to text."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from speechattn import __version__, commands
from speechattn.errors import SpeechattnError

UNITS = ("char", "word")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    args = make_parser().parse_args(arguments)
    level = logging.DEBUG if args.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(levelname).1s %(name)s: %(message)s")
    try:
        return args.run(args) or 0
    except SpeechattnError as error:
        print(f"speechattn {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"speechattn {args.command}: interrupted; run it again to go on", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands. Each `run` lives in `speechattn.commands`."""
    parser = argparse.ArgumentParser(
        prog="speechattn", description="Speech recognition and lip reading."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="log every detail")
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = subcommands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    add_data_commands(command)
    add_training_commands(command)
    add_decoding_commands(command)
    return parser


def add_data_commands(command) -> None:
    """synth-corpus, prepare, roi, augment-sheet, tokens."""
    sub = command(
        "synth-corpus", commands.synth_corpus, "make a small synthetic talking-face corpus"
    )
    sub.add_argument("output", type=Path, help="folder to make")
    sub.add_argument("--layout", choices=("grid", "cnvsrc"), default="grid")
    sub.add_argument("--language", choices=("en", "cmn"), help="grid only; en if not given")
    sub.add_argument(
        "--speakers", type=int, help="2 if not given; cnvsrc: those of CN-CVS, 8 if not given"
    )
    sub.add_argument("--utterances", type=int, help="grid only: of each speaker, 60 if not given")
    sub.add_argument(
        "--clips", type=int, help="cnvsrc only: of all parts together, 620 if not given"
    )
    sub.add_argument(
        "--no-damaged", action="store_true", help="cnvsrc only: leave the damaged clips out"
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--workers", type=int, default=2)

    sub = command("prepare", commands.prepare, "make Lhotse manifests of a corpus")
    sub.add_argument("corpus", choices=("cnvsrc", "grid", "tsv"))
    sub.add_argument("data_dir", type=Path, help="the corpus")
    sub.add_argument("output", type=Path, help="folder of the manifests")
    sub.add_argument(
        "--split", choices=("utterance", "speaker"), default="utterance", help="grid only"
    )
    sub.add_argument("--dev-speakers", nargs="*", default=[], help="grid, --split speaker")
    sub.add_argument("--test-speakers", nargs="*", default=[], help="grid, --split speaker")
    sub.add_argument("--table", default="manifest.tsv", help="tsv only: the table's name")
    sub.add_argument("--language", default=None, help="tsv only: code of the language")
    sub.add_argument("--track", choices=("single", "multi"), help="cnvsrc only; needed")
    sub.add_argument(
        "--year", type=int, choices=(2023, 2024, 2025), default=2024, help="cnvsrc only"
    )
    sub.add_argument(
        "--open", action="store_true", help="cnvsrc only: the open track, all data that is there"
    )
    sub.add_argument(
        "--extra",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="cnvsrc, --open: folders with a manifest.tsv, to be trained on too",
    )
    sub.add_argument(
        "--lists", type=Path, help="cnvsrc only: `data/` of a baseline; else the corpus itself"
    )
    sub.add_argument(
        "--units", type=Path, help="cnvsrc only: units that the lists' ids stand for, if needed"
    )
    sub.add_argument("--workers", type=int, default=2)

    sub = command("roi", commands.roi, "cut the mouths out of the videos of manifests")
    sub.add_argument("cuts", nargs="+", type=Path, help="Lhotse cuts")
    sub.add_argument("--output", type=Path, required=True, help="folder of the crops")
    sub.add_argument("--config", type=Path, help="YAML whose section `roi` has the options")
    sub.add_argument("--detector", choices=("mtcnn", "mediapipe"), default="mtcnn")
    sub.add_argument(
        "--no-landmarks",
        action="store_true",
        help="run the detector even where the corpus brings landmarks",
    )
    sub.add_argument("--workers", type=int, default=2)
    sub.add_argument(
        "--faces",
        nargs="*",
        type=Path,
        default=[],
        help="folders of other crops of these videos: faces found then are not looked for again",
    )
    sub.add_argument(
        "--dry-run", action="store_true", help="say how much time and disk it takes, and stop"
    )
    sub.add_argument("--num-shards", type=int, default=1, help="jobs that divide the videos")
    sub.add_argument("--shard", type=int, help="do the part of this job alone, from 0")
    sub.add_argument(
        "--merge", action="store_true", help="make one folder of what the jobs wrote, and stop"
    )
    sub.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run the shards on this Ray cluster ('auto', or 'local' for this machine) and merge",
    )

    sub = command(
        "augment-sheet", commands.augment_sheet, "draw what a configuration does to mouth crops"
    )
    sub.add_argument("--config", type=Path, required=True, help="YAML with a section `data`")
    sub.add_argument("--crops", type=Path, required=True, help="folder of mouth crops")
    sub.add_argument("--output", type=Path, required=True, help="PNG file")
    sub.add_argument("--clip", help="id of the clip; the first if not given")
    sub.add_argument("--draws", type=int, default=3, help="rows for each transform")
    sub.add_argument("--seed", type=int, default=0)
    add_overrides(sub)

    sub = command("tokens", commands.tokens, "make a tokenizer from training transcripts")
    sub.add_argument("cuts", type=Path, nargs="?", help="Lhotse cuts")
    sub.add_argument(
        "--from-list",
        type=Path,
        help="instead of cuts: the units themselves, one a line, as char_units.txt of CNVSRC",
    )
    sub.add_argument(
        "--bpe-model", type=Path, help="--from-list: SentencePiece model that cuts text into them"
    )
    sub.add_argument("--output", type=Path, required=True, help="folder of the tokenizer")
    sub.add_argument("--kind", choices=("char", "bpe", "unigram"), default="char")
    sub.add_argument("--vocab-size", type=int, default=None)

    sub = command("align", commands.align, "find out when words were said, where cuts do not say")
    sub.add_argument("cuts", type=Path, nargs="+", help="Lhotse cuts; the first are learnt from")
    sub.add_argument("--tokens", type=Path, required=True, help="folder of the tokenizer")
    sub.add_argument("--output", type=Path, required=True, help="folder for the aligned cuts")


def add_training_commands(command) -> None:
    """train, average, train-lm, ngram, combine, import-checkpoint."""
    sub = command("train", commands.train, "train a model, or go on training it")
    sub.add_argument("--config", type=Path, required=True)
    sub.add_argument("--train-cuts", type=Path, required=True)
    sub.add_argument("--valid-cuts", type=Path, required=True)
    sub.add_argument("--tokens", type=Path, required=True, help="folder of the tokenizer")
    sub.add_argument("--crops", type=Path, help="folder of mouth crops")
    sub.add_argument("--noise", type=Path, help="what the config's AddNoise mixes in")
    sub.add_argument("--exp", type=Path, required=True, help="the experiment's folder")
    sub.add_argument(
        "--init",
        type=Path,
        action="append",
        default=[],
        metavar="MODEL",
        help="model directory to start from; may be repeated, the first that has a part gives it",
    )
    add_overrides(sub)

    sub = command("average", commands.average, "average the best epochs into a model directory")
    sub.add_argument("--config", type=Path, required=True)
    sub.add_argument("--tokens", type=Path, required=True, help="folder of the tokenizer")
    sub.add_argument("--exp", type=Path, required=True, help="the experiment's folder")
    sub.add_argument("--best", type=int, default=5, help="how many epochs")
    sub.add_argument(
        "--data-dir", type=Path, help="the corpus; if it is synthetic the model says so"
    )
    add_overrides(sub)

    add_lm_commands(command)

    sub = command(
        "combine", commands.combine, "make one model of several that are searched together"
    )
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
    sub.add_argument("--options", type=Path, help="YAML of decode options; else the first model's")
    add_noise(sub, "with --cuts: sound to mix in, for as many utterances again")
    add_allow(sub, "the models")

    sub = command(
        "import-checkpoint",
        commands.import_checkpoint,
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
    """train-lm, ngram."""
    sub = command("train-lm", commands.train_lm, "train a Transformer language model on text")
    sub.add_argument("--config", type=Path, required=True)
    add_texts(sub)
    sub.add_argument("--exp", type=Path, required=True, help="EXP/lm is the model that it makes")
    sub.add_argument("--best", type=int, default=5, help="how many epochs are averaged")
    add_set(sub)

    sub = command("ngram", commands.ngram, "count an n-gram language model of units into ARPA")
    add_texts(sub)
    sub.add_argument("--order", type=int, default=4, help="units of the longest n-gram")
    sub.add_argument(
        "--min-count",
        type=int,
        default=1,
        help="n-grams of three units and more that are seen less often are left out",
    )
    sub.add_argument("--output", type=Path, required=True, help="ARPA file, gzipped if named .gz")


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


def add_overrides(sub: argparse.ArgumentParser) -> None:
    add_set(sub)
    add_allow(sub, "the config")


def add_set(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change the config, e.g. --set training.max_epochs=5",
    )


def add_allow(sub: argparse.ArgumentParser, who: str) -> None:
    sub.add_argument(
        "--allow", action="append", default=[], help=f"a plug-in package that {who} may name"
    )


def add_noise(sub: argparse.ArgumentParser, what: str) -> None:
    sub.add_argument("--noise", type=Path, help=what)
    sub.add_argument("--snr", type=float, default=0.0, help="signal to noise, dB")
    sub.add_argument(
        "--noise-part",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("FROM", "TO"),
        help="stretch of the noise that is used, as shares of its length",
    )


def add_decoding_commands(command) -> None:
    """decode, score, fuse, transcribe, export, report, doctor."""
    sub = command("decode", commands.decode, "decode the cuts of a manifest")
    sub.add_argument("--model", type=Path, required=True, help="model directory")
    sub.add_argument("--cuts", type=Path, required=True)
    sub.add_argument("--crops", type=Path, help="folder of mouth crops")
    sub.add_argument("--output", type=Path, required=True)
    add_search(sub)
    add_noise(sub, "sound to mix in")
    sub.add_argument("--details", type=int, default=6, help="utterances to look at closely")
    sub.add_argument("--batch-seconds", type=float, default=60.0)
    sub.add_argument("--profile", action="store_true", help="print which operators took the time")
    add_allow(sub, "the model")
    add_device(sub)

    sub = command("score", commands.score, "error rate of transcripts against references")
    sub.add_argument("--ref", type=Path, help="id TAB text, or id TAB speaker TAB text")
    sub.add_argument("--hyp", type=Path, help="id TAB text")
    sub.add_argument("--decode-dir", type=Path, help="score hyp.tsv in it by both units")
    sub.add_argument("--unit", choices=UNITS, default="char")
    sub.add_argument("--json", type=Path, help="write the result here too")
    sub.add_argument("--alignments", action="store_true", help="print the aligned errors")
    sub.add_argument("--allow-missing", action="store_true", help="missing ids are deletions")
    sub.add_argument("--allow-extra", action="store_true", help="ids without reference: ignore")

    add_fuse(command)

    sub = command("transcribe", commands.transcribe, "transcribe media files")
    sub.add_argument("--model", type=Path, required=True, help="model directory")
    sub.add_argument("files", nargs="+", help="face videos, mouth crops or sound")
    sub.add_argument("--format", choices=("txt", "json", "srt", "vtt", "tsv"), default="txt")
    sub.add_argument("--output-dir", type=Path, help="a file for each input, else all to stdout")
    add_search(sub)
    sub.add_argument("--batch-size", type=int, default=8, help="files decoded together")
    add_allow(sub, "the model")
    add_device(sub)

    sub = command("export", commands.export, "write a model as ONNX graphs, to be a --model too")
    sub.add_argument("--model", type=Path, required=True, help="model directory")
    sub.add_argument("--output", type=Path, required=True, help="folder of the graphs")
    add_allow(sub, "the model")

    sub = command("report", commands.report, "one HTML page on one or more experiments")
    sub.add_argument("exp", nargs="+", type=Path, help="experiment folders")
    sub.add_argument("--output", type=Path, required=True)
    sub.add_argument("--title", default="Speech recognition experiments")
    sub.add_argument("--note", help="a line in the banner at the top")

    command("doctor", commands.doctor, "what this machine has for speechattn")


def add_search(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--options", type=Path, help="YAML of decode options; else the model's")
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a decode option, e.g. --set beam_size=20",
    )
    sub.add_argument("--ngram", type=Path, help="ARPA file of the model's units; set ngram_weight")
    sub.add_argument(
        "--lm",
        type=Path,
        help="directory of a Transformer language model; set lm_weight or lm_rescore_weight",
    )
    sub.add_argument(
        "--hot-words",
        type=Path,
        help="text file, a phrase a line, a score behind a tab; set hot_words_weight",
    )


def add_fuse(command) -> None:
    """fuse."""
    sub = command("fuse", commands.fuse, "one transcript out of several systems' (ROVER)")
    sub.add_argument(
        "systems",
        nargs="+",
        type=Path,
        help="decode folders, or tables of id TAB text; the best first: it is the base, wins ties",
    )
    sub.add_argument("--output", type=Path, required=True, help="decode folder to make")
    sub.add_argument("--unit", choices=UNITS, default="word", help="what is voted on")
    sub.add_argument(
        "--voting",
        choices=("frequency", "average", "maximum"),
        help="by votes, or by votes and the average or highest confidence; else chosen on --dev",
    )
    sub.add_argument("--alpha", type=float, help="share of the votes, 0 to 1; else as --voting")
    sub.add_argument(
        "--null-confidence", type=float, help="of saying nothing, 0 to 1; else as --voting"
    )
    sub.add_argument("--weights", nargs="+", type=float, help="one for each system, in order")
    sub.add_argument(
        "--dev",
        nargs="+",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="outputs of the same systems in the same order, with ref.tsv; choose on these what "
        "is not given; repeated for several conditions",
    )
    sub.add_argument("--tune-weights", action="store_true", help="choose the weights on --dev")
    sub.add_argument(
        "--order-by-dev", action="store_true", help="order the systems by their errors on --dev"
    )
    sub.add_argument("--allow-missing", action="store_true", help="an id may be in some only")


def add_device(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    sub.add_argument(
        "--precision",
        choices=("fp32", "mixed", "bf16"),
        default="fp32",
        help="of the visual frontend on a CPU; mixed and bf16 are faster and may change a text",
    )
    sub.add_argument("--threads", type=int, help="of the CPU; else torch's choice, a thread a core")
    sub.add_argument(
        "--quantize",
        choices=("int8", "bf16"),
        help="the large linear layers, on a CPU: faster, and may change a text",
    )


if __name__ == "__main__":
    sys.exit(main())
