"""The commands that score, fuse and report what was recognised."""

import logging
from pathlib import Path
from typing import Literal

from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)

Unit = Literal["char", "word"]


def score(
    *, ref: Path | None = None, hyp: Path | None = None, decode_dir: Path | None = None,
    unit: Unit = "char", json: Path | None = None, alignments: bool = False,
    allow_missing: bool = False, allow_extra: bool = False
) -> None:  # fmt: skip
    """Score transcripts against references.

    Give --ref and --hyp, or --decode-dir.

    Args:
        ref: table of references, id TAB text or id TAB speaker TAB text.
        hyp: table of transcripts, id TAB text.
        decode_dir: decode folder, scored by both units.
        unit: unit of the errors, of --ref and --hyp.
        json: file to write the result of --ref and --hyp to.
        alignments: print the aligned errors.
        allow_missing: count ids without a transcript as deletions.
        allow_extra: ignore ids without a reference.
    """
    from rich.console import Console

    from speechattn.evaluation import score_both, score_files

    console = Console()
    if decode_dir is not None:
        for report in score_both(decode_dir, allow_missing).values():
            report.render(console, alignments)
    elif ref is not None and hyp is not None:
        checks = {"allow_missing": allow_missing, "allow_extra": allow_extra}
        shown = {"json_path": json, "show_alignments": alignments, "console": console}
        score_files(ref, hyp, unit, **checks, **shown)
    else:
        raise ConfigError("give --ref and --hyp, or --decode-dir")


def delay(
    decode_dir: Path, *, ref_times: Path, frame_shift: float = 0.04, chunk_seconds: float = 0.0
) -> None:
    """Measure how long after a word was said it is emitted; adds it to score.json.

    Args:
        decode_dir: decode folder.
        ref_times: Lhotse cuts with word alignments.
        frame_shift: seconds from one hidden frame to the next.
        chunk_seconds: seconds of a chunk of the encoder, 0 for frame by frame.
    """
    from rich.console import Console

    from speechattn.evaluation.delay import score_delay

    score_delay(decode_dir, ref_times, frame_shift, chunk_seconds, Console())


def fuse(
    systems: tuple[Path, ...], *, output: Path, unit: Unit = "word",
    voting: Literal["frequency", "average", "maximum", "avgconf"] | None = None,
    alpha: float | None = None, null_confidence: float | None = None,
    weights: tuple[float, ...] = (), dev: tuple[tuple[str, ...], ...] = (),
    tune_weights: bool = False, order_by_dev: bool = False, allow_missing: bool = False
) -> None:  # fmt: skip
    """Fuse the transcripts of several systems into one (ROVER).

    Args:
        systems: decode folders, or tables of id TAB text; the first, best one wins ties.
        output: decode folder to make.
        unit: unit that is voted on.
        voting: by votes, with the average or highest confidence, or by confidence as NIST's
            avgconf (default: best on --dev).
        alpha: share of the votes in the score, 0 to 1 (default: as --voting).
        null_confidence: confidence of saying nothing, 0 to 1 (default: as --voting).
        weights: weights of the systems, in order (default: equal).
        dev: decode folders of the same systems in the same order, with ref.tsv, to choose on what
            is not given; repeated for several conditions.
        tune_weights: choose the weights on --dev.
        order_by_dev: order the systems by their errors on --dev.
        allow_missing: fuse ids that only some systems have.
    """
    from rich.console import Console

    from speechattn.evaluation.fusion.files import fuse

    given = {"voting": voting, "alpha": alpha, "null_confidence": null_confidence}
    chosen = {"dev": dev, "tune_weights": tune_weights, "order_by_dev": order_by_dev}
    options = {"unit": unit, "weights": weights or None, "allow_missing": allow_missing}
    fuse(systems, output, **given, **chosen, **options, console=Console())


def report(
    exp: tuple[Path, ...], *, output: Path, title: str = "Speech recognition experiments",
    note: str | None = None
) -> None:  # fmt: skip
    """Write one HTML page on one or more experiments.

    Args:
        exp: folders of experiments.
        output: HTML file to write.
        title: heading of the page.
        note: line in a banner at the top.
    """
    from rich.console import Console

    from speechattn.evaluation.report import summary_table, write_report

    Console().print(summary_table(exp))
    logger.info("written to %s", write_report(exp, output, title, note))
