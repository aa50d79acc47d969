"""Table of an experiment: character error rates of each system and of their fusion.

    python recipes/cnvsrc/results.py EXP

Writes EXP/results.md and prints it. A system with a bidirectional decoder has a second row, for its
left-to-right decoder alone.
"""

import argparse
import json
from pathlib import Path

from speechattn.data.tables import read_table
from speechattn.files import write_text

SETS = ("dev", "test")
KINDS = {"": "", "_left": ", left to right alone"}


def read_score(folder: Path) -> dict:
    """Read the score by character of a decode folder; empty if it was not scored."""
    path = folder / "score.json"
    return json.loads(path.read_text(encoding="utf-8"))["char"] if path.is_file() else {}


def error_rate(score: dict) -> str:
    """Return the error rate with its interval, of `read_score`."""
    if not score:
        return "-"
    rate = f"{score['error_rate']:.2f}"
    if score.get("ci_low") is not None:
        rate += f" ({score['ci_low']:.1f}-{score['ci_high']:.1f})"
    return rate


def speakers(score: dict) -> str:
    """Return the best and the worst speaker, if there are several."""
    if not score:
        return "-"
    rates = sorted((s["error_rate"], name) for name, s in score.get("speakers", {}).items())
    if len(rates) < 2:
        return "one"
    (low, best), (high, worst) = rates[0], rates[-1]
    return f"{len(rates)}: {low:.1f} ({best}) to {high:.1f} ({worst})"


def utterances(exp: Path, name: str) -> int:
    """Return the number of utterances in a set."""
    tables = sorted(exp.glob(f"*/decode_{name}/ref.tsv"))
    return len(read_table(tables[0]).texts) if tables else 0


def is_synthetic(exp: Path) -> bool:
    """Return whether a model was trained on synthetic data."""
    metas = exp.glob("**/model/meta.json")
    return any(json.loads(meta.read_text(encoding="utf-8")).get("synthetic") for meta in metas)


def table(exp: Path) -> str:
    """Return the table as Markdown."""
    lines = [f"# {exp.name}", ""]
    if is_synthetic(exp):
        lines += ["Synthetic corpus: these numbers say nothing about real speech.", ""]
    sizes = {name: size for name in SETS if (size := utterances(exp, name))}
    listed = ", ".join(f"{name}: {size} utterances" for name, size in sizes.items())
    lines += [f"CER % (95 % interval). {listed}.", ""]
    lines += [f"| system | {' | '.join(sizes)} | speakers, {[*sizes][-1]} |"]
    lines += [f"|---|{'---|' * len(sizes)}---|"]
    systems = sorted({path.parent.name for path in exp.glob("*/decode_*")} - {"fused"})
    if (exp / "fused").is_dir():
        systems.append("fused")
    for system in systems:
        for suffix, words in KINDS.items():
            folders = [exp / system / f"decode_{name}{suffix}" for name in sizes]
            if not any(folder.is_dir() for folder in folders):
                continue
            name = f"**{system}** (ROVER)" if system == "fused" else system + words
            scores = [read_score(folder) for folder in folders]
            cells = " | ".join(map(error_rate, scores))
            lines.append(f"| {name} | {cells} | {speakers(scores[-1])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exp", type=Path)
    exp = parser.parse_args().exp
    if not any(exp.glob("*/decode_*/ref.tsv")):
        raise SystemExit(f"{exp}: no decode folders; run stage 6 first")
    text = table(exp)
    write_text(exp / "results.md", text)
    print(text)


if __name__ == "__main__":
    main()
