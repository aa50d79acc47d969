"""What became of a corpus: the list of what was left out, and the counts of what was not."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechattn.data.corpora.media import MediaFacts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Something of a corpus that was left out: a file as the corpus names it, a line, a reason.

    `kept` if it was not left out, but has a fault.
    """

    file: str
    line: int | None
    reason: str
    kept: bool = False


def write_failures(failures: Sequence[Failure], path: Path) -> None:
    """Write the list, even when empty: an old one would tell of faults long mended."""
    rows = [("file", "line", "reason")]
    rows += [(f.file, str(f.line or ""), f.reason) for f in failures]
    # A file name may hold a tab or a line break, and a reason anything.
    text = "".join("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows)
    write_text(path, text)
    lost = [failure for failure in failures if not failure.kept]
    for failure in lost[:10]:
        where = f" (line {failure.line})" if failure.line else ""
        log.warning("left out %s%s: %s", printable(failure.file), where, printable(failure.reason))
    if failures:
        number = len(failures) - len(lost)
        kept = f", {number} kept with a fault" if number else ""
        log.warning("%d left out%s; all of them are listed in %s", len(lost), kept, path)


def printable(name: str) -> str:
    """A file name whose bytes may not be UTF-8, fit to be printed."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file so that an interrupted run leaves the old one or none."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    os.replace(partial, path)


def write_summary(
    rows: Mapping[str, Sequence[tuple[str, MediaFacts]]],
    failures: Sequence[Failure],
    output_dir: Path,
) -> None:
    """Write `summary.json`.

    Args:
        rows: split to the speaker and the facts of each of its cuts.
        failures: what was left out, and what was kept with a fault.
        output_dir: its folder.
    """
    splits = dict(_counts(rows))
    kept = sum(failure.kept for failure in failures)
    summary = {"splits": splits, "failures": len(failures) - kept, "remarks": kept}
    text = json.dumps(summary, indent=2, ensure_ascii=False)
    write_text(output_dir / "summary.json", text + "\n")
    for name, counts in splits.items():
        log.info("%s: %s", name, ", ".join(f"{value} {key}" for key, value in counts.items()))


def read_summary(output_dir: str | Path) -> dict:
    """The counts of a prepared corpus.

    Returns:
        `{"splits": {name: {"utterances", "hours", "speakers", "silent"}}, "failures": int,
        "remarks": int}`: the last two are what was left out, and what was kept with a fault.
    """
    return json.loads((Path(output_dir) / "summary.json").read_text(encoding="utf-8"))


def _counts(rows: Mapping[str, Sequence[tuple[str, MediaFacts]]]) -> Iterator[tuple[str, dict]]:
    for name, clips in rows.items():
        facts = [known for _, known in clips]
        yield (
            name,
            {
                "utterances": len(clips),
                "hours": round(sum(f.num_samples / f.sample_rate for f in facts) / 3600, 4),
                "speakers": len({speaker for speaker, _ in clips}),
                "silent": sum(not f.has_audio for f in facts),
            },
        )
