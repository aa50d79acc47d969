"""Character and word error rates with alignments, intervals and per-speaker rows.

Counts are those of a Levenshtein alignment with unit costs (kaldialign), after the text rule of
`speechattn.evaluation.text`. Error rates are sums over the test set: errors / reference units.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import kaldialign
import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from speechattn.errors import SpeechattnError
from speechattn.evaluation.alignment import Pair, format_alignment
from speechattn.evaluation.bootstrap import MIN_SPEAKERS, BootstrapOptions, error_rate_interval
from speechattn.evaluation.text import UNITS, TextNormalization, Unit, normalize, split_units

RATE_NAMES = {"char": "CER", "word": "WER"}


@dataclass(frozen=True)
class ErrorCounts:
    """Sums over one or more utterances.

    Args:
        insertions, deletions, substitutions: errors.
        reference_length: units of the references.
        utterances, wrong_utterances: number of all utterances, and of those with an error.
    """

    insertions: int
    deletions: int
    substitutions: int
    reference_length: int
    utterances: int
    wrong_utterances: int

    @property
    def errors(self) -> int:
        return self.insertions + self.deletions + self.substitutions

    @property
    def error_rate(self) -> float | None:
        """Return percent of the reference length, maybe above 100; None if that is 0."""
        return 100 * self.errors / self.reference_length if self.reference_length else None

    @property
    def sentence_error_rate(self) -> float | None:
        """Return the percentage of utterances with an error."""
        return 100 * self.wrong_utterances / self.utterances if self.utterances else None

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and rates under their names in score.json."""
        names = "error_rate errors insertions deletions substitutions reference_length utterances"
        return {name: getattr(self, name) for name in [*names.split(), "sentence_error_rate"]}


@dataclass(frozen=True)
class UtteranceScore:
    """The units and errors of one utterance.

    Args:
        id: utterance id.
        speaker: None if the tables have no speakers.
        reference, hypothesis: their units; no units for a missing hypothesis.
        insertions, deletions, substitutions: errors of the alignment.
    """

    id: str
    speaker: str | None
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]
    insertions: int
    deletions: int
    substitutions: int

    @property
    def errors(self) -> int:
        return self.insertions + self.deletions + self.substitutions

    def alignment(self) -> list[Pair]:
        """Return pairs (reference unit, hypothesis unit); an empty string stands for none."""
        return kaldialign.align(self.reference, self.hypothesis, "")


@dataclass(frozen=True)
class ScoreReport:
    """Scores of one hypothesis table against its reference, in one unit.

    Args:
        unit: ``char`` or ``word``.
        total: counts over all utterances.
        ci_low, ci_high: ends of the bootstrap interval in percent, or None.
        ci_level: coverage of the interval.
        ci_blocks: what was resampled, ``utterance`` or ``speaker``.
        speakers: counts by speaker; empty if the tables have no speakers.
        utterances: the utterances in the reference's order.
        missing: ids without a hypothesis, scored as deletions.
        extra: ids without a reference, left out.
        normalization: the text rule.
    """

    unit: Unit
    total: ErrorCounts
    ci_low: float | None
    ci_high: float | None
    ci_level: float
    ci_blocks: str
    speakers: dict[str, ErrorCounts]
    utterances: tuple[UtteranceScore, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    normalization: TextNormalization

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of score.json for this unit; rates in percent, None if undefined."""
        return {
            "unit": self.unit,
            **self.total.to_dict(),
            "ci_low": self.ci_low,
            "ci_high": self.ci_high,
            "ci_level": self.ci_level,
            "ci_blocks": self.ci_blocks,
            "speakers": {name: counts.to_dict() for name, counts in self.speakers.items()},
            "missing": list(self.missing),
            "extra": list(self.extra),
            "normalization": asdict(self.normalization),
        }

    def worst(self, count: int) -> list[UtteranceScore]:
        """Return the utterances with most errors, of equal ones the higher rate first."""
        wrong = [utterance for utterance in self.utterances if utterance.errors]
        wrong.sort(key=lambda u: (-u.errors, -u.errors / max(1, len(u.reference)), u.id))
        return wrong[:count]

    def confusions(self, count: int) -> list[tuple[Pair, int]]:
        """Return the most frequent errors as ((reference unit, hypothesis unit), count)."""
        wrong = [utterance for utterance in self.utterances if utterance.errors]
        pairs = Counter(pair for u in wrong for pair in u.alignment() if pair[0] != pair[1])
        return sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:count]

    def render(self, console: Console | None = None, show_alignments: bool = False) -> None:
        """Print the table and, on request, the alignment of every utterance with errors."""
        console = console or Console()
        console.print(self._rich_table())
        if self.ci_low is not None:
            text = f"{self.ci_level:.0%} interval by bootstrap over {self.ci_blocks}s"
            console.print(text, style="dim")
        for ids, meaning in (
            (self.missing, "without a hypothesis, counted as deletions"),
            (self.extra, "without a reference, left out"),
        ):
            if ids:
                console.print(f"{len(ids)} {meaning}: {_shortened(ids)}", style="yellow")
        for utterance in self.utterances if show_alignments else ():
            if utterance.errors:
                title = utterance.id + (f" ({utterance.speaker})" if utterance.speaker else "")
                text = f"\n{title}: {utterance.errors} errors / {len(utterance.reference)}\n"
                text += format_alignment(utterance.alignment())
                console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _rich_table(self) -> RichTable:
        name = RATE_NAMES[self.unit]
        table = RichTable(title=f"{name} by {self.unit}")
        table.add_column("", overflow="fold")
        for header in ("utts", self.unit + "s", "ins", "del", "sub", f"{name} %", "CI %", "SER %"):
            table.add_column(header, justify="right", no_wrap=True)
        interval = format_interval(self.ci_low, self.ci_high)
        table.add_row("all", *_cells(self.total, interval), end_section=bool(self.speakers))
        for speaker, counts in self.speakers.items():
            table.add_row(speaker, *_cells(counts, ""))
        return table


def score(
    reference: Mapping[str, str],
    hypothesis: Mapping[str, str],
    unit: Unit = "char",
    speakers: Mapping[str, str] | None = None,
    *,
    normalization: TextNormalization | None = None,
    allow_missing: bool = False,
    allow_extra: bool = False,
    bootstrap: BootstrapOptions | None = None,
) -> ScoreReport:
    """Score hypotheses against references.

    Args:
        reference: text by utterance id; a text may be empty.
        hypothesis: text by utterance id.
        unit: ``char`` or ``word``, as defined in `speechattn.evaluation.text`.
        speakers: speaker by utterance id, for scores by speaker.
        normalization: the text rule.
        allow_missing: count an id without a hypothesis as deletions of all its units.
        allow_extra: leave out ids without a reference.
        bootstrap: options of the confidence interval.

    Raises:
        SpeechattnError: ids differ and may not, a reference has no speaker, or the references hold
            nothing to score.
    """
    if unit not in UNITS:
        raise SpeechattnError(f"unit must be one of {', '.join(UNITS)}, not {unit!r}")
    normalization = normalization or TextNormalization()
    bootstrap = bootstrap or BootstrapOptions()
    missing, extra = _unmatched(reference, hypothesis, allow_missing, allow_extra)
    if unknown := [key for key in reference if speakers and key not in speakers]:
        raise SpeechattnError(f"{len(unknown)} ids have no speaker: {_shortened(unknown)}")
    utterances = []
    for key, text in reference.items():
        texts = (text, hypothesis.get(key, ""))
        units = (tuple(split_units(normalize(t, normalization), unit)) for t in texts)
        utterances.append(_score_one(key, speakers[key] if speakers else None, *units))
    total = _sum(utterances)
    if not total.reference_length:
        raise SpeechattnError(f"nothing to score: {len(reference)} references without any {unit}")
    by_speaker: dict[str, list[UtteranceScore]] = {}
    for utterance in utterances:
        if utterance.speaker is not None:
            by_speaker.setdefault(utterance.speaker, []).append(utterance)
    by_speaker = dict(sorted(by_speaker.items()))
    blocks = bootstrap.blocks
    if blocks == "auto":
        blocks = "speaker" if len(by_speaker) >= MIN_SPEAKERS else "utterance"
    if blocks == "speaker" and not by_speaker:
        raise SpeechattnError("a bootstrap over speakers needs a table with a speaker column")
    interval = error_rate_interval(
        np.array([u.errors for u in utterances]),
        np.array([len(u.reference) for u in utterances]),
        bootstrap,
        [str(u.speaker) for u in utterances] if blocks == "speaker" else None,
    )
    low, high = (100 * end for end in interval) if interval else (None, None)
    return ScoreReport(
        unit=unit,
        total=total,
        ci_low=low,
        ci_high=high,
        ci_level=bootstrap.level,
        ci_blocks=blocks,
        speakers={name: _sum(items) for name, items in by_speaker.items()},
        utterances=tuple(utterances),
        missing=missing,
        extra=extra,
        normalization=normalization,
    )


def format_interval(low: float | None, high: float | None) -> str:
    """Return ``1.2 - 3.4`` with an en dash, or an empty string."""
    return "" if low is None or high is None else f"{low:.1f}\u2013{high:.1f}"


def _unmatched(
    reference: Mapping[str, str],
    hypothesis: Mapping[str, str],
    allow_missing: bool,
    allow_extra: bool,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return ids without a hypothesis and ids without a reference; refuse those not allowed."""
    missing = tuple(key for key in reference if key not in hypothesis)
    extra = tuple(key for key in hypothesis if key not in reference)
    if missing and not allow_missing:
        raise SpeechattnError(
            f"{len(missing)} of {len(reference)} references have no hypothesis: "
            f"{_shortened(missing)}; allow missing ids to count them as deletions"
        )
    if extra and not allow_extra:
        raise SpeechattnError(
            f"{len(extra)} of {len(hypothesis)} hypotheses have no reference: "
            f"{_shortened(extra)}; allow extra ids to leave them out"
        )
    return missing, extra


def _score_one(
    key: str, speaker: str | None, reference: tuple[str, ...], hypothesis: tuple[str, ...]
) -> UtteranceScore:
    counts = kaldialign.edit_distance(reference, hypothesis)
    errors = (counts[name] for name in ("ins", "del", "sub"))
    return UtteranceScore(key, speaker, reference, hypothesis, *errors)


def _sum(utterances: Sequence[UtteranceScore]) -> ErrorCounts:
    errors = ("insertions", "deletions", "substitutions")
    return ErrorCounts(
        **{name: sum(getattr(u, name) for u in utterances) for name in errors},
        reference_length=sum(len(u.reference) for u in utterances),
        utterances=len(utterances),
        wrong_utterances=sum(u.errors > 0 for u in utterances),
    )


def _cells(counts: ErrorCounts, interval: str) -> list[str]:
    numbers = "utterances reference_length insertions deletions substitutions".split()
    rates = (counts.error_rate, counts.sentence_error_rate)
    errors, sentences = ("\u2013" if rate is None else f"{rate:.2f}" for rate in rates)
    return [*(str(getattr(counts, name)) for name in numbers), errors, interval, sentences]


def _shortened(ids: Sequence[str], count: int = 5) -> str:
    return ", ".join(ids[:count]) + (", ..." if len(ids) > count else "")
