"""The HTML report of one or several experiments: one file that needs nothing else.

Error rates with intervals, learning curves, worst utterances with coloured alignments, and for the
utterances with details what the model saw and where it looked. Whatever an experiment lacks is left
out.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table as RichTable

from speechattn import __version__
from speechattn.evaluation import template
from speechattn.evaluation.alignment import SPACE
from speechattn.evaluation.curves import compare_curves, learning_curves
from speechattn.evaluation.error_rate import RATE_NAMES, ScoreReport, format_interval
from speechattn.evaluation.experiment import (
    Decode,
    Details,
    Experiment,
    read_details,
    read_experiments,
    read_vocabulary,
)
from speechattn.evaluation.pictures import heads_picture, utterance_picture
from speechattn.evaluation.text import UNITS, Unit, has_cjk
from speechattn.files import write_text

SYNTHETIC = (
    "Synthetic data: voices from a speech synthesiser and drawn faces. These numbers show that the "
    "software works; they say nothing about real speech or real lips."
)
CAVEAT = (
    "Read cross-attention with care: it explains only a part. Compared with saliency from input "
    "attribution it captures about half of what matters in the input, and at best 52 to 75 % of "
    "what matters in the encoder's output, averages over heads and layers doing better than single "
    "heads (Papi et al. 2025, arXiv:2509.18010)."
)
# Facts of meta.json worth a line under an experiment's name, as (key, label).
_FACTS = (
    ("modality", "modality"),
    ("corpus", "corpus"),
    ("language", "language"),
    ("parameters", "parameters"),
    ("epochs", "epochs"),
)


def write_report(
    exp_dirs: Iterable[str | Path] | Mapping[str, str | Path],
    output: str | Path,
    title: str = "Speech recognition experiments",
    note: str | None = None,
    worst: int = 8,
    max_details: int = 4,
) -> Path:
    """Write the report.

    Args:
        exp_dirs: experiment folders, or name to folder.
        output: the HTML file.
        title: its heading.
        note: a banner under the heading. An experiment whose meta.json has a true ``synthetic``
            brings the banner about synthetic data by itself.
        worst: utterances shown with their errors, of each decoded split.
        max_details: utterances shown with pictures, of each decoded split.

    Returns:
        The path of the file.

    Raises:
        SpeechattnError: an experiment folder does not exist.
    """
    experiments = read_experiments(exp_dirs)
    head = [
        f'<div class="muted">speechattn {escape(__version__)}, '
        f"{datetime.now().strftime('%Y-%m-%d %H:%M')}</div>"
    ]
    if note:
        head.append(template.note(note))
    if any(experiment.synthetic for experiment in experiments):
        head.append(template.note(SYNTHETIC))
    links = [
        f'<a href="#experiment-{i}">{escape(experiment.name)}</a>'
        for i, experiment in enumerate(experiments)
    ]
    head.append(f'<nav><a href="#results">Results</a>{"".join(links)}</nav>')
    body = [_results(experiments)]
    body += [
        _experiment(experiment, f"experiment-{i}", worst, max_details)
        for i, experiment in enumerate(experiments)
    ]
    foot = (
        "Error rates are insertions, deletions and substitutions over reference units, after the "
        "text rule of speechattn.evaluation.text (NFKC, case and spaces beside CJK ignored). "
        "Intervals are 95 % percentile bootstrap intervals unless score.json says otherwise."
    )
    output = Path(output)
    write_text(output, template.page(title, "".join(head), "\n".join(body), foot))
    return output


def summary_table(
    exp_dirs: Iterable[str | Path] | Mapping[str, str | Path], title: str = "Error rates"
) -> RichTable:
    """Error rates with intervals of every experiment and decoded split, for a terminal."""
    table = RichTable(title=title, box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    table.add_column("experiment", overflow="fold", min_width=10)
    table.add_column("modality", no_wrap=True)
    table.add_column("split")
    for header in ("utts", "CER % (95 % CI)", "WER % (95 % CI)"):
        table.add_column(header, justify="right", no_wrap=True)
    for experiment in read_experiments(exp_dirs):
        for decode in experiment.decodes:
            if not decode.scores:
                continue
            cells = []
            for unit in UNITS:
                entry = decode.scores.get(unit)
                interval = _interval(entry)
                cells.append(_percent(entry) + (f" ({interval})" if interval else ""))
            table.add_row(
                experiment.name,
                experiment.modality,
                decode.split,
                str(_any_score(decode).get("utterances", "")),
                *cells,
            )
    return table


def _results(experiments: list[Experiment]) -> str:
    scored = [(e, d) for e in experiments for d in e.decodes if d.scores]
    parts = ['<section id="results"><h2>Results</h2>']
    if scored:
        # Chinese has no words to score: its word rate repeats the character rate.
        unit: Unit = "word" if any("word" in d.scores for _, d in scored) else "char"
        rates = [
            value
            for _, d in scored
            for value in (_number(d.scores.get(unit), key) for key in ("error_rate", "ci_high"))
            if value is not None
        ]
        scale = max([*rates, 1.0]) * 1.02
        headers = [("Experiment", ""), ("Modality", ""), ("Split", ""), ("Utterances", "num")]
        for name in RATE_NAMES.values():
            headers += [(f"{name} %", "num rate"), ("95 % CI", "num ci")]
        headers += [("SER %", "num"), (f"{RATE_NAMES[unit]}, 0\u2013{scale:.0f} %", "range")]
        rows = []
        for experiment, decode in scored:
            cells = [escape(experiment.name), escape(experiment.modality), escape(decode.split)]
            cells.append(str(_any_score(decode).get("utterances", "")))
            for each in UNITS:
                cells += [_percent(decode.scores.get(each)), _interval(decode.scores.get(each))]
            cells.append(_percent(_any_score(decode), "sentence_error_rate"))
            entry = decode.scores.get(unit)
            rate = _number(entry, "error_rate")
            low, high = _number(entry, "ci_low"), _number(entry, "ci_high")
            cells.append("" if rate is None else template.interval_bar(rate, low, high, scale))
            rows.append(cells)
        parts.append(template.table(headers, rows, "wide"))
        parts.append(
            '<p class="muted">CER and WER: character and word error rate. SER: share of utterances '
            "with an error.</p>"
        )
    else:
        parts.append("<p>Nothing has been scored yet.</p>")
    together = compare_curves({e.name: e.metrics for e in experiments})
    if together:
        parts.append(template.figure(together, ""))
    parts.append("</section>")
    return "\n".join(parts)


def _experiment(experiment: Experiment, anchor: str, worst: int, max_details: int) -> str:
    parts = [f'<section id="{anchor}"><h2>{escape(experiment.name)}</h2>']
    meta = {**experiment.meta, "modality": experiment.modality}
    facts = [f"{label}: {_fact(meta[key])}" for key, label in _FACTS if meta.get(key)]
    if facts:
        parts.append(f'<p class="muted">{escape(", ".join(facts))}</p>')
    curves = learning_curves(experiment.metrics)
    if curves:
        parts.append(f"<h3>Learning curves</h3>{template.figure(curves, '')}")
    vocabulary = read_vocabulary(experiment.folder / "model")
    for decode in experiment.decodes:
        parts.append(_errors(decode, worst))
        found = (read_details(path, vocabulary) for path in decode.details[:max_details])
        shown = [picture for d in found if d is not None and (picture := _details(d))]
        if shown:
            parts.append(f"<h3>What the model saw: {escape(decode.split)}</h3>")
            if any("<summary>" in picture for picture in shown):
                parts.append(f'<p class="muted">{CAVEAT}</p>')
            parts += shown
    parts.append("</section>")
    return "\n".join(part for part in parts if part)


def _errors(decode: Decode, worst: int) -> str:
    by_word = decode.report("word")
    if by_word is None:
        return ""
    unit: Unit = (
        "char" if any(has_cjk("".join(u.reference)) for u in by_word.utterances) else "word"
    )
    report = by_word if unit == "word" else decode.report("char")
    split = escape(decode.split)
    if report is None:
        return ""
    if not report.total.errors:
        return f"<h3>Errors: {split}</h3><p>None in {report.total.utterances} utterances.</p>"
    items = [
        f'<div class="utt"><div><h4>{escape(u.id)}</h4><span class="muted">'
        f"{escape(u.speaker + ', ') if u.speaker else ''}{_count(u.errors, 'error')} "
        f"in {_count(len(u.reference), unit)}</span></div>"
        f"{template.alignment(u.alignment(), unit == 'char')}</div>"
        for u in report.worst(worst)
    ]
    return (
        f"<h3>Worst utterances: {split}</h3>{template.KEY}"
        f'<div class="columns"><div>{"".join(items)}</div><div>{_frequent(report)}</div></div>'
    )


def _frequent(report: ScoreReport) -> str:
    """Table of the most frequent errors, and of the speakers where there are several."""
    rows = [
        [
            f'<span class="pair D"><span class="ref">{_unit(pair[0])}</span></span>'
            if not pair[1]
            else _unit(pair[0]),
            f'<span class="pair I"><span class="hyp">{_unit(pair[1])}</span></span>'
            if not pair[0]
            else _unit(pair[1]),
            str(count),
        ]
        for pair, count in report.confusions(12)
    ]
    headers = [("Most frequent: reference", ""), ("hypothesis", ""), ("times", "num")]
    html = template.table(headers, rows)
    if len(report.speakers) > 1:
        name = RATE_NAMES[report.unit]
        html += template.table(
            [("Speaker", ""), ("Utterances", "num"), (f"{name} %", "num")],
            [
                [escape(speaker), str(counts.utterances), _percent(counts.to_dict())]
                for speaker, counts in report.speakers.items()
            ],
        )
    return html


def _details(details: Details) -> str:
    picture = utterance_picture(details)
    if not picture:
        return ""
    parts = [f'<div class="detail"><h4>{escape(details.id)}</h4>']
    for label, text in (("reference", details.reference), ("hypothesis", details.text)):
        if text:
            parts.append(f'<p><span class="muted">{label}</span> {escape(text)}</p>')
    parts.append(template.figure(picture, ""))
    if details.cross_attention is not None:
        parts.append(
            "<details><summary>Every layer and head</summary>"
            + template.figure(
                heads_picture(details.cross_attention),
                "Cross-attention, time to the right, tokens downwards; the last column is the mean "
                "over a layer's heads.",
            )
            + "</details>"
        )
    parts.append("</div>")
    return "".join(parts)


def _any_score(decode: Decode) -> dict[str, Any]:
    """The word entry for what both units share (utterances, sentence errors), or the only one."""
    return decode.scores.get("word") or decode.scores.get("char") or {}


def _number(entry: Mapping[str, Any] | None, key: str) -> float | None:
    value = (entry or {}).get(key)
    return float(value) if isinstance(value, int | float) else None


def _percent(entry: Mapping[str, Any] | None, key: str = "error_rate") -> str:
    value = _number(entry, key)
    return "\u2013" if value is None else f"{value:.2f}"


def _interval(entry: Mapping[str, Any] | None) -> str:
    return format_interval(_number(entry, "ci_low"), _number(entry, "ci_high"))


def _fact(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _count(number: int, noun: str) -> str:
    noun = {"char": "character"}.get(noun, noun)
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _unit(unit: str) -> str:
    return escape(SPACE if unit == " " else unit) or "\u2013"
