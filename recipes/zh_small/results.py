"""The table of an experiment of zh_small: character error rates of each way to decode one model.

    python recipes/zh_small/results.py EXP
    python recipes/zh_small/results.py EXP --best METHOD    prints the weight that did best on dev

Prints EXP/results.md and writes it.
"""

import argparse
import json
from pathlib import Path

METHODS = {
    "ctc_greedy": "CTC, greedy",
    "joint": "CTC and attention, no language model",
    "joint_ngram": "CTC and attention, n-gram in the search (shallow fusion)",
    "ctc_beam_ngram": "CTC prefix beam search, n-gram in the search",
    "hlg": "CTC over a graph of lexicon and n-gram (HLG)",
    "hlg_larger": "the same, its lattices by an n-gram model that is 2 longer",
    "hlg_decoder": "HLG, its 10 best by the decoder too (a fifth of the score of CTC)",
}


def tuned(exp: Path, method: str) -> dict[str, float]:
    """Error rate on dev by the weight of the language model."""
    paths = (exp / "tune" / method).glob("*/score.json")
    return {path.parent.name: rate(path)["error_rate"] for path in paths}


def best_weight(exp: Path, method: str) -> str:
    """The weight of the fewest errors, the smallest of several; empty where there is none."""
    found = tuned(exp, method)
    return min(found, key=lambda w: (found[w], float(w))) if found else ""


def rate(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))["char"]


def table(exp: Path) -> str:
    """The Markdown text."""
    lines = ["| search | weight of the LM | CER on dev % | CER on test % |", "|---|---|---|---|"]
    for method, title in METHODS.items():
        path = exp / f"decode_test_{method}" / "score.json"
        if not path.is_file():
            continue
        score, weight = rate(path), best_weight(exp, method)
        dev = f"{tuned(exp, method)[weight]:.1f}" if weight else "-"
        interval = ""
        if score.get("ci_low") is not None:
            interval = f" ({score['ci_low']:.1f}-{score['ci_high']:.1f})"
        lines.append(f"| {title} | {weight or '-'} | {dev} | {score['error_rate']:.1f}{interval} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exp", type=Path)
    parser.add_argument("--best", choices=METHODS, help="print its weight and stop")
    options = parser.parse_args()
    if options.best:
        print(best_weight(options.exp, options.best))
        return
    text = table(options.exp)
    (options.exp / "results.md").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
