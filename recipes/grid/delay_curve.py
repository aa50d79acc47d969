"""Curve of delay against error rate of an experiment of delay.sh.

    python recipes/grid/delay_curve.py EXP

Writes EXP/delay.svg and EXP/delay.md, and prints the latter.
"""

import argparse
import json
from pathlib import Path

from speechattn.files import replacing, write_text

SEARCHES = {"decode_test": "greedy", "decode_graph": "graph"}


def read_results(exp: Path) -> list[dict]:
    """Read the penalty, word error rate and delays of each model and search."""
    results = []
    for folder, search in SEARCHES.items():
        rows = []
        for path in exp.glob(f"penalty_*/{folder}/score.json"):
            scores = json.loads(path.read_text())
            if scores.get("delay", {}).get("end", {}).get("words"):
                penalty = float(path.parent.parent.name.removeprefix("penalty_"))
                rows.append({"search": search, "penalty": penalty, "wer": scores["word"],
                             "delay": scores["delay"]})  # fmt: skip
        results += sorted(rows, key=lambda one: one["penalty"])
    return results


def table(results: list[dict]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| search | penalty | WER % | end delay, mean ms | 90 % | first word | last word |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
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


def draw(results: list[dict], path: Path) -> None:
    """Draw word error rate over mean delay, one line per search and one point per penalty."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for search in SEARCHES.values():
        rows = [one for one in results if one["search"] == search]
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
    with replacing(path) as part:
        figure.savefig(part, metadata={"Date": None})  # the same figures give the same file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exp", type=Path)
    options = parser.parse_args()
    results = read_results(options.exp)
    if not results:
        parser.error(f"{options.exp}: no delays; run delay.sh up to stage 3 first")
    text = table(results)
    write_text(options.exp / "delay.md", text)
    draw(results, options.exp / "delay.svg")
    print(text, end="")


if __name__ == "__main__":
    main()
