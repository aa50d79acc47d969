"""The delay / error-rate curve of an experiment of delay.sh.

    python recipes/grid/delay_curve.py EXP

Prints EXP/delay.md and writes it, and EXP/delay.svg.
"""

import argparse
import json
from pathlib import Path

SEARCHES = {"decode_test": "greedy", "decode_graph": "graph"}


def measured(exp: Path) -> list[dict]:
    """Search, penalty, word error rate and delays of each model, by search and rising penalty."""
    found = []
    for folder, search in SEARCHES.items():
        rows = []
        for path in exp.glob(f"penalty_*/{folder}/score.json"):
            scores = json.loads(path.read_text())
            if scores.get("delay", {}).get("end", {}).get("words"):
                penalty = float(path.parent.parent.name.removeprefix("penalty_"))
                rows.append({"search": search, "penalty": penalty, "wer": scores["word"],
                             "delay": scores["delay"]})  # fmt: skip
        found += sorted(rows, key=lambda one: one["penalty"])
    return found


def table(found: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| search | penalty | WER % | end delay, mean ms | 90 % | first word | last word |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        wer, delay = one["wer"], one["delay"]
        interval = (
            f" ({wer['ci_low']:.1f}-{wer['ci_high']:.1f})" if wer.get("ci_low") is not None else ""
        )
        shown = (delay["end"]["mean"], delay["end"]["p90"], delay["first"]["mean"],
                 delay["last"]["mean"])  # fmt: skip
        cells = [one["search"], f"{one['penalty']:g}", f"{wer['error_rate']:.2f}{interval}"]
        cells += ["-" if x is None else f"{x:.0f}" for x in shown]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(found: list[dict], path: Path) -> None:
    """Word error rate over mean delay, a line a search and a point a penalty."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for search in SEARCHES.values():
        rows = [one for one in found if one["search"] == search]
        if not rows:
            continue
        points = [(one["delay"]["end"]["mean"], one["wer"]["error_rate"]) for one in rows]
        axes.plot(*zip(*points, strict=True), marker="o", label=search)
        for one, point in zip(rows, points, strict=True):
            text = f"{one['penalty']:g}"
            axes.annotate(text, point, textcoords="offset points", xytext=(6, 6))
    axes.legend()
    axes.set_xlabel("emission after the reference time, mean, ms")
    axes.set_ylabel("word error rate, %")
    axes.set_ylim(bottom=0)
    axes.set_title("GRID, sound in chunks, by delay penalty", fontsize=10)
    axes.grid(alpha=0.3)
    # Without a date: the same figures give the same file.
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exp", type=Path)
    options = parser.parse_args()
    found = measured(options.exp)
    if not found:
        parser.error(f"{options.exp} has no delays: run delay.sh up to stage 3")
    text = table(found)
    (options.exp / "delay.md").write_text(text, encoding="utf-8")
    draw(found, options.exp / "delay.svg")
    print(text, end="")


if __name__ == "__main__":
    main()
