"""The commands that turn recordings into text."""

import argparse
import json
import logging
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from speechattn.cli.common import add_allow, add_noise, read_noise
from speechattn.cli.evaluation import UNITS, add_fuse, doctor, report, score
from speechattn.errors import ConfigError, SpeechattnError

logger = logging.getLogger(__name__)


def add_decoding_commands(command) -> None:
    """decode, score, fuse, transcribe, stream, export, report, doctor."""
    sub = command("decode", decode, "decode the cuts of a manifest")
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

    sub = command("score", score, "error rate of transcripts against references")
    sub.add_argument("--ref", type=Path, help="id TAB text, or id TAB speaker TAB text")
    sub.add_argument("--hyp", type=Path, help="id TAB text")
    sub.add_argument("--decode-dir", type=Path, help="score hyp.tsv in it by both units")
    sub.add_argument("--unit", choices=UNITS, default="char")
    sub.add_argument("--json", type=Path, help="write the result here too")
    sub.add_argument("--alignments", action="store_true", help="print the aligned errors")
    sub.add_argument("--allow-missing", action="store_true", help="missing ids are deletions")
    sub.add_argument("--allow-extra", action="store_true", help="ids without reference: ignore")
    sub.add_argument(
        "--delay",
        action="store_true",
        help="--decode-dir: also how long after a word was said it is emitted, into score.json",
    )
    sub.add_argument("--ref-times", type=Path, help="--delay: Lhotse cuts with word alignments")
    sub.add_argument(
        "--frame-shift", type=float, default=0.04, help="--delay: seconds of a hidden frame"
    )
    sub.add_argument(
        "--chunk-seconds",
        type=float,
        default=0.0,
        help="--delay: what the encoder hears at a time; 0 for frame by frame",
    )

    add_fuse(command)

    sub = command("transcribe", transcribe, "transcribe media files")
    sub.add_argument("--model", type=Path, required=True, help="model directory")
    sub.add_argument("files", nargs="+", help="face videos, mouth crops or sound")
    sub.add_argument("--format", choices=("txt", "json", "srt", "vtt", "tsv"), default="txt")
    sub.add_argument("--output-dir", type=Path, help="a file for each input, else all to stdout")
    add_search(sub)
    sub.add_argument("--batch-size", type=int, default=8, help="files decoded together")
    add_allow(sub, "the model")
    add_device(sub)

    sub = command("stream", stream, "recognise a file, or sound from a pipe, as it comes")
    sub.add_argument("--model", type=Path, required=True, help="model directory, with chunks")
    sub.add_argument(
        "file",
        nargs="?",
        default="-",
        help="media file; - for raw sound on stdin: 16 bits, little-endian, mono, the model's rate",
    )
    sub.add_argument("--format", choices=("txt", "json"), default="txt")
    sub.add_argument("--live", action="store_true", help="read a file no faster than it plays")
    sub.add_argument("--chunk-size", type=int, help="hidden frames; else the model's")
    sub.add_argument("--left-context", type=int, help="hidden frames, -1 for all; else the model's")
    sub.add_argument(
        "--endpoint", type=float, default=0.0, help="seconds of silence that end an utterance"
    )
    add_search(sub)
    add_allow(sub, "the model")
    add_device(sub)

    sub = command("export", export, "write a model as ONNX graphs, to be a --model too")
    sub.add_argument("--model", type=Path, required=True, help="model directory")
    sub.add_argument("--output", type=Path, required=True, help="folder of the graphs")
    add_allow(sub, "the model")

    sub = command("report", report, "one HTML page on one or more experiments")
    sub.add_argument("exp", nargs="+", type=Path, help="experiment folders")
    sub.add_argument("--output", type=Path, required=True)
    sub.add_argument("--title", default="Speech recognition experiments")
    sub.add_argument("--note", help="a line in the banner at the top")

    command("doctor", doctor, "what this machine has for speechattn")


def add_search(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--search", help="class of the search, or a YAML file; else the model's")
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
    sub.add_argument(
        "--graph", type=Path, help="folder that `speechattn graph` made; set method=ctc_graph"
    )
    sub.add_argument(
        "--graph-ngram",
        type=Path,
        help="larger ARPA file of the graph's words; set graph_ngram_weight",
    )


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


def decode(args: Namespace) -> None:
    """speechattn decode"""
    from speechattn.transcribe.manifests import decode_cuts
    from speechattn.transcribe.timing import profiled

    with profiled(args.profile):
        decode_cuts(
            load_transcriber(args).recogniser,
            args.cuts,
            args.output,
            crops=args.crops,
            noise=read_noise(args),
            batch_seconds=args.batch_seconds,
            details=args.details,
        )


def load_transcriber(args: Namespace):
    """The model that a command names, with the decode options that it names."""
    import torch

    from speechattn.decoding.config import chosen_search
    from speechattn.model.directory import read_config
    from speechattn.transcribe.transcriber import Transcriber

    if args.threads is not None:
        if args.threads < 1:
            raise ConfigError(f"--threads {args.threads}: at least 1")
        torch.set_num_threads(args.threads)
    search = chosen_search(
        read_config(args.model),
        search=args.search,
        overrides=args.overrides,
        allow=args.allow,
        where=args.model,
    )
    return Transcriber.from_pretrained(
        args.model,
        search=search,
        device=args.device,
        allow=args.allow,
        precision=args.precision,
        quantize=args.quantize,
        lm=args.lm,
        ngram=args.ngram,
        hot_words=args.hot_words,
        graph=args.graph,
        graph_ngram=args.graph_ngram,
    )


def export(args: Namespace) -> None:
    """speechattn export"""
    from speechattn.deploy.export import export_dir

    for path in export_dir(args.model, args.output, args.allow):
        logger.info("written to %s", path)


def stream(args: Namespace) -> None:
    """speechattn stream"""
    from speechattn.data.reader import in_real_time, pieces_of_pipe
    from speechattn.transcribe.streaming.session import StreamOptions

    transcriber = load_transcriber(args)
    reader = transcriber.recogniser.reader
    if args.file != "-":
        pieces = reader.pieces(args.file)
        pieces = in_real_time(pieces) if args.live else pieces
    elif reader.uses_video:
        raise ConfigError("a pipe carries sound alone, and this model reads lips: give a file")
    else:
        pieces = pieces_of_pipe(sys.stdin.buffer, reader.sample_rate)
    options = StreamOptions(args.chunk_size, args.left_context, endpoint_seconds=args.endpoint)
    for update in transcriber.stream(pieces, options):
        if args.format == "json":
            print(json.dumps(asdict(update), ensure_ascii=False), flush=True)
            continue
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        for word in update.final:
            print(f"{word.start:.2f}\t{word.end:.2f}\t{word.text}", flush=True)
        if sys.stderr.isatty():
            said = " ".join(word.text for word in update.partial)
            print(said, end="", file=sys.stderr, flush=True)


def transcribe(args: Namespace) -> int:
    """speechattn transcribe"""
    from rich.progress import Progress

    from speechattn.transcribe.transcript import format_transcripts

    if args.output_dir is not None:
        names = Counter(Path(file).name for file in args.files)
        if twice := [name for name, n in names.items() if n > 1]:
            raise SpeechattnError(
                f"--output-dir: several files are called {twice[0]}, and one transcript would "
                "overwrite the other"
            )
    transcriber = load_transcriber(args)
    transcripts = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("transcribe", total=len(args.files))
        for start in range(0, len(args.files), args.batch_size):
            some = args.files[start : start + args.batch_size]
            transcripts += transcriber.transcribe(some, batch_size=args.batch_size)
            progress.advance(task, len(some))
    if args.output_dir is not None:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        for transcript in transcripts:
            if transcript.error is None:
                path = args.output_dir / f"{Path(transcript.id).name}.{args.format}"
                path.write_text(format_transcripts([transcript], args.format), encoding="utf-8")
    else:
        sys.stdout.write(format_transcripts(transcripts, args.format))
    failed = [t for t in transcripts if t.error is not None]
    for transcript in failed:
        print(f"speechattn transcribe: {transcript.error}", file=sys.stderr)
    return 1 if failed else 0
