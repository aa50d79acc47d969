"""The commands that score, fuse and report what was recognised."""

import logging
from pathlib import Path
from typing import Annotated, Literal

from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)

Unit = Literal["char", "word"]


def score(
    *,
    ref: Annotated[
        Path | None, "table of references, id TAB text or id TAB speaker TAB text"
    ] = None,
    hyp: Annotated[Path | None, "table of transcripts, id TAB text"] = None,
    decode_dir: Annotated[Path | None, "decode folder, scored by both units"] = None,
    unit: Annotated[Unit, "unit of the errors, of --ref and --hyp"] = "char",
    json: Annotated[Path | None, "file to write the result of --ref and --hyp to"] = None,
    alignments: Annotated[bool, "print the aligned errors"] = False,
    allow_missing: Annotated[bool, "count ids without a transcript as deletions"] = False,
    allow_extra: Annotated[bool, "ignore ids without a reference"] = False,
) -> None:
    """Score transcripts against references.

    Give --ref and --hyp, or --decode-dir.
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
    decode_dir: Annotated[Path, "decode folder"],
    *,
    ref_times: Annotated[Path, "Lhotse cuts with word alignments"],
    frame_shift: Annotated[float, "seconds from one hidden frame to the next"] = 0.04,
    chunk_seconds: Annotated[
        float, "seconds of a chunk of the encoder, 0 for frame by frame"
    ] = 0.0,
) -> None:
    """Measure how long after a word was said it is emitted; adds it to score.json."""
    from rich.console import Console

    from speechattn.evaluation.delay import score_delay

    score_delay(decode_dir, ref_times, frame_shift, chunk_seconds, Console())


def fuse(
    systems: Annotated[
        tuple[Path, ...], "decode folders, or tables of id TAB text; the first, best one wins ties"
    ],
    *,
    output: Annotated[Path, "decode folder to make"],
    unit: Annotated[Unit, "unit that is voted on"] = "word",
    voting: Annotated[
        Literal["frequency", "average", "maximum", "avgconf"] | None,
        "by votes, with the average or highest confidence, or by confidence as NIST's avgconf "
        "(default: best on --dev)",
    ] = None,
    alpha: Annotated[
        float | None, "share of the votes in the score, 0 to 1 (default: as --voting)"
    ] = None,
    null_confidence: Annotated[
        float | None, "confidence of saying nothing, 0 to 1 (default: as --voting)"
    ] = None,
    weights: Annotated[tuple[float, ...], "weights of the systems, in order (default: equal)"] = (),
    dev: Annotated[
        tuple[tuple[str, ...], ...],
        "decode folders of the same systems in the same order, with ref.tsv, to choose on "
        "what is not given; repeated for several conditions",
    ] = (),
    tune_weights: Annotated[bool, "choose the weights on --dev"] = False,
    order_by_dev: Annotated[bool, "order the systems by their errors on --dev"] = False,
    allow_missing: Annotated[bool, "fuse ids that only some systems have"] = False,
) -> None:
    """Fuse the transcripts of several systems into one (ROVER)."""
    from rich.console import Console

    from speechattn.evaluation.fusion.files import fuse

    given = {"voting": voting, "alpha": alpha, "null_confidence": null_confidence}
    chosen = {"dev": dev, "tune_weights": tune_weights, "order_by_dev": order_by_dev}
    options = {"unit": unit, "weights": weights or None, "allow_missing": allow_missing}
    fuse(systems, output, **given, **chosen, **options, console=Console())


def report(
    exp: Annotated[tuple[Path, ...], "folders of experiments"],
    *,
    output: Annotated[Path, "HTML file to write"],
    title: Annotated[str, "heading of the page"] = "Speech recognition experiments",
    note: Annotated[str | None, "line in a banner at the top"] = None,
) -> None:
    """Write one HTML page on one or more experiments."""
    from rich.console import Console

    from speechattn.evaluation.report import summary_table, write_report

    Console().print(summary_table(exp))
    logger.info("written to %s", write_report(exp, output, title, note))
