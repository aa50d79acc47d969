"""The report on a prepared corpus: the list of what was left out, and counts of the rest."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechattn.data.corpora.media import MediaFacts
from speechattn.files import write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """A file or line of a corpus that was left out, or kept in spite of a fault."""

    file: str  # as the corpus names it
    line: int | None  # number of the line, where it is one of a table
    reason: str  # of what is wrong
    kept: bool = False  # it was not left out


def write_failures(failures: Sequence[Failure], path: Path) -> None:
    """Write the list, even when empty: an old one would name faults that were mended."""
    rows = [("file", "line", "reason")]
    rows += [(f.file, str(f.line or ""), f.reason) for f in failures]
    # A file name may hold a tab or a line break, and a reason anything.
    text = "".join("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows)
    write_text(path, text, errors="backslashreplace")
    lost = [failure for failure in failures if not failure.kept]
    for failure in lost[:10]:
        where = f" (line {failure.line})" if failure.line else ""
        log.warning("left out %s%s: %s", printable(failure.file), where, printable(failure.reason))
    if failures:
        number = len(failures) - len(lost)
        kept = f", {number} kept with a fault" if number else ""
        log.warning("%d left out%s; all of them are listed in %s", len(lost), kept, path)


def printable(name: str) -> str:
    """Escape the bytes of a file name that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def write_summary(
    rows: Mapping[str, Sequence[tuple[str, MediaFacts]]],
    failures: Sequence[Failure],
    output_dir: Path,
) -> None:
    """Write `summary.json`; `rows` maps a split to speaker and facts of each of its cuts."""
    splits = {name: _counts(clips) for name, clips in rows.items()}
    kept = sum(failure.kept for failure in failures)
    summary = {"splits": splits, "failures": len(failures) - kept, "remarks": kept}
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_text(output_dir / "summary.json", text, errors="backslashreplace")
    for name, counts in splits.items():
        log.info("%s: %s", name, ", ".join(f"{value} {key}" for key, value in counts.items()))


def read_summary(output_dir: str | Path) -> dict:
    """Read the counts of a prepared corpus.

    Returns:
        `{"splits": {name: {"utterances", "hours", "speakers", "silent"}}, "failures": int,
        "remarks": int}`: the last two are what was left out, and what was kept with a fault.
    """
    return json.loads((Path(output_dir) / "summary.json").read_text(encoding="utf-8"))


def _counts(rows: Sequence[tuple[str, MediaFacts]]) -> dict[str, float]:
    return {
        "utterances": len(rows),
        "hours": round(sum(f.num_samples / f.sample_rate for _, f in rows) / 3600, 4),
        "speakers": len({speaker for speaker, _ in rows}),
        "silent": sum(not f.has_audio for _, f in rows),
    }
