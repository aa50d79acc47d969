"""Scoring of transcript tables on disk, for ``speechattn score`` and the recipes."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from speechattn.data.tables import read_table
from speechattn.errors import SpeechattnError
from speechattn.evaluation.bootstrap import BootstrapOptions
from speechattn.evaluation.error_rate import ScoreReport, score
from speechattn.evaluation.text import UNITS, TextNormalization, Unit
from speechattn.files import write_text


def score_files(
    ref: str | Path,
    hyp: str | Path,
    unit: Unit = "char",
    *,
    json_path: str | Path | None = None,
    show_alignments: bool = False,
    allow_missing: bool = False,
    allow_extra: bool = False,
    normalization: TextNormalization | None = None,
    bootstrap: BootstrapOptions | None = None,
    console: Console | None = None,
) -> ScoreReport:
    """Score a table of hypotheses against one of references; print and write the result.

    Speakers are the reference table's, or else the hypothesis table's; if both have them, they must
    agree.

    Args:
        ref, hyp: tables, see `speechattn.data.tables`.
        unit: ``char`` or ``word``.
        json_path: where `ScoreReport.to_dict` is written.
        show_alignments: print the aligned errors.
        allow_missing, allow_extra, normalization, bootstrap: as for `score`.
        console: where the table is printed; None prints nothing.
    """
    reference, hypothesis = read_table(ref), read_table(hyp)
    for key, speaker in hypothesis.speakers.items():
        if reference.speakers.get(key, speaker) != speaker:
            raise SpeechattnError(
                f"{hyp}: the speaker of {key!r} is {speaker!r}, but "
                f"{reference.speakers[key]!r} in {ref}"
            )
    speakers = reference.speakers
    if not speakers and hypothesis.speakers:
        # The speaker of a missing hypothesis is unknown.
        speakers = {key: hypothesis.speakers.get(key, "unknown") for key in reference.texts}
    try:
        report = score(
            reference.texts,
            hypothesis.texts,
            unit,
            speakers,
            normalization=normalization,
            allow_missing=allow_missing,
            allow_extra=allow_extra,
            bootstrap=bootstrap,
        )
    except SpeechattnError as error:
        raise SpeechattnError(f"{hyp} against {ref}: {error}") from None
    if json_path is not None:
        write_json(json_path, report.to_dict())
    if console is not None:
        report.render(console, show_alignments)
    return report


def score_both(
    decode_dir: str | Path,
    allow_missing: bool = False,
    normalization: TextNormalization | None = None,
    bootstrap: BootstrapOptions | None = None,
) -> dict[str, ScoreReport]:
    """Score ``hyp.tsv`` against ``ref.tsv`` of a decode folder by character and by word.

    Writes ``score.json`` beside them: ``{"char": ..., "word": ...}``, each `ScoreReport.to_dict`.
    """
    folder = Path(decode_dir)
    tables = (folder / "ref.tsv", folder / "hyp.tsv")
    options = {"normalization": normalization, "bootstrap": bootstrap}
    reports = {u: score_files(*tables, u, allow_missing=allow_missing, **options) for u in UNITS}
    write_json(folder / "score.json", {unit: r.to_dict() for unit, r in reports.items()})
    return reports


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write strict JSON (no NaN), whole or not at all."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
