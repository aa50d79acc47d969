"""The HTML report of one or several experiments: one file that needs nothing else.

Error rates with intervals, learning curves, the worst utterances with colored alignments, and for
utterances with details the model's input, posteriors and attention. Whatever an experiment lacks is
left out. The page is `templates/report.html.j2`.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich import box
from rich.table import Table as RichTable

from speechattn import __version__
from speechattn.evaluation.alignment import SPACE, operation
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
# Facts of meta.json worth a line under an experiment's name.
_FACTS = ("modality", "corpus", "language", "parameters", "epochs")


def write_report(
    exp_dirs: Iterable[str | Path] | Mapping[str, str | Path],
    output: str | Path,
    title: str = "Speech recognition experiments",
    note: str | None = None,
    *,
    worst: int = 8,
    max_details: int = 4,
) -> Path:
    """Write the report.

    Args:
        exp_dirs: experiment folders, or name to folder.
        output, title: the HTML file and its heading.
        note: a banner under the heading. An experiment whose meta.json has a true ``synthetic``
            brings the banner about synthetic data by itself.
        worst, max_details: utterances of a decoded split shown with their errors, with pictures.

    Returns:
        The path of the file.

    Raises:
        SpeechattnError: an experiment folder does not exist.
    """
    experiments = read_experiments(exp_dirs)
    scored = [(e, d) for e in experiments for d in e.decodes if d.scores]
    # Chinese has no words to score: its word rate repeats the character rate.
    unit: Unit = "word" if any("word" in d.scores for _, d in scored) else "char"
    keys = ("error_rate", "ci_high")
    rates = [_number(d.scores.get(unit), key) for _, d in scored for key in keys]
    notes = [note, SYNTHETIC if any(e.synthetic for e in experiments) else None]
    template = _environment().get_template("report.html.j2")
    page = template.render(
        title=title,
        version=__version__,
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        notes=[text for text in notes if text],
        rate_names=RATE_NAMES,
        unit=unit,
        scored=scored,
        scale=1.02 * max([1.0, *(rate for rate in rates if rate is not None)]),
        curves=compare_curves({e.name: e.metrics for e in experiments}),
        caveat=CAVEAT,
        worst=worst,
        experiments=[_experiment(experiment, max_details) for experiment in experiments],
    )
    output = Path(output)
    write_text(output, page)
    return output


def summary_table(
    exp_dirs: Iterable[str | Path] | Mapping[str, str | Path], title: str = "Error rates"
) -> RichTable:
    """Return the error rates of every experiment and decoded split as a table for a terminal."""
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
            for entry in map(decode.scores.get, UNITS):
                interval = _interval(entry)
                cells.append(_percent(entry) + (f" ({interval})" if interval else ""))
            utterances = str(decode.any_score.get("utterances", ""))
            table.add_row(experiment.name, experiment.modality, decode.split, utterances, *cells)
    return table


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": _percent,
        "interval": _interval,
        "counted": _counted,
        "operation": operation,
        "visible": lambda unit: SPACE if unit == " " else unit,
    }
    return environment


def _experiment(experiment: Experiment, max_details: int) -> dict[str, Any]:
    """Return what the page shows of one experiment."""
    meta = {**experiment.meta, "modality": experiment.modality}
    vocabulary = read_vocabulary(experiment.folder / "model")
    decodes = []
    for decode in experiment.decodes:
        details = (read_details(path, vocabulary) for path in decode.details[:max_details])
        shown = [pictures for d in details if d is not None and (pictures := _pictures(d))]
        decodes.append({"split": decode.split, "report": _report(decode), "details": shown})
    return {
        "name": experiment.name,
        "facts": [f"{key}: {_fact(meta[key])}" for key in _FACTS if meta.get(key)],
        "curves": learning_curves(experiment.metrics),
        "decodes": decodes,
    }


def _report(decode: Decode) -> ScoreReport | None:
    """Return scores by word, or by character where the references are written without spaces."""
    report = decode.report("word")
    if report and any(has_cjk("".join(u.reference)) for u in report.utterances):
        return decode.report("char")
    return report


def _pictures(details: Details) -> dict[str, Any] | None:
    picture = utterance_picture(details)
    if not picture:
        return None
    attention = details.cross_attention
    heads = "" if attention is None else heads_picture(attention)
    texts = {name: getattr(details, name) for name in ("id", "reference", "text")}
    return {**texts, "picture": picture, "heads": heads}


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


def _counted(number: int, noun: str) -> str:
    noun = {"char": "character"}.get(noun, noun)
    return f"{number} {noun}{'' if number == 1 else 's'}"
