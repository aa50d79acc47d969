"""The table of an experiment: character error rates of each system and of all of them fused.

    python recipes/cnvsrc/results.py EXP

Prints EXP/results.md and writes it. A system that reads both ways has a second row, of its search
left to right alone.
"""

import argparse
import json
from pathlib import Path

from speechattn.data.tables import read_table
from speechattn.files import write_text

SETS = ("dev", "test")
KINDS = {"": "", "_left": ", left to right alone"}


def cell(folder: Path) -> str:
    """Error rate with its interval, of a decode folder that was scored."""
    if not (folder / "score.json").is_file():
        return "-"
    score = json.loads((folder / "score.json").read_text(encoding="utf-8"))["char"]
    rate = f"{score['error_rate']:.2f}"
    if score.get("ci_low") is not None:
        rate += f" ({score['ci_low']:.1f}-{score['ci_high']:.1f})"
    return rate


def speakers(folder: Path) -> str:
    """The best and the worst speaker, where there are several."""
    if not (folder / "score.json").is_file():
        return "-"
    score = json.loads((folder / "score.json").read_text(encoding="utf-8"))["char"]
    rates = sorted((s["error_rate"], name) for name, s in score.get("speakers", {}).items())
    if len(rates) < 2:
        return "one"
    (low, best), (high, worst) = rates[0], rates[-1]
    return f"{len(rates)}: {low:.1f} ({best}) to {high:.1f} ({worst})"


def utterances(exp: Path, name: str) -> int:
    """How many there are in a set."""
    tables = sorted(exp.glob(f"*/decode_{name}/ref.tsv"))
    return len(read_table(tables[0]).texts) if tables else 0


def is_synthetic(exp: Path) -> bool:
    """Whether the models were trained on a made-up corpus."""
    metas = exp.glob("**/model/meta.json")
    return any(json.loads(meta.read_text(encoding="utf-8")).get("synthetic") for meta in metas)


def table(exp: Path) -> str:
    """The Markdown text."""
    lines = [f"# {exp.name}", ""]
    if is_synthetic(exp):
        lines += ["Synthetic corpus: these numbers say nothing about real speech.", ""]
    found = [name for name in SETS if utterances(exp, name)]
    sizes = ", ".join(f"{name}: {utterances(exp, name)} utterances" for name in found)
    lines += [f"CER % (95 % interval). {sizes}.", ""]
    lines += [f"| system | {' | '.join(found)} | speakers, {found[-1]} |"]
    lines += [f"|---|{'---|' * len(found)}---|"]
    systems = sorted({path.parent.name for path in exp.glob("*/decode_*")} - {"fused"})
    if (exp / "fused").is_dir():
        systems.append("fused")
    for system in systems:
        for suffix, words in KINDS.items():
            folders = [exp / system / f"decode_{name}{suffix}" for name in found]
            if not any(folder.is_dir() for folder in folders):
                continue
            name = f"**{system}** (ROVER)" if system == "fused" else system + words
            cells = " | ".join(cell(folder) for folder in folders)
            lines.append(f"| {name} | {cells} | {speakers(folders[-1])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exp", type=Path)
    exp = parser.parse_args().exp
    if not any(exp.glob("*/decode_*/ref.tsv")):
        raise SystemExit(f"{exp} has no decode folders: run stage 6")
    text = table(exp)
    write_text(exp / "results.md", text)
    print(text)


if __name__ == "__main__":
    main()
