"""Writes docs/attention.md: what every mechanism is, from the code, and what it costs, as measured.

`benchmarks/attention_growth.py --page` calls it. Costs come from attention/growth.json beside the
page (`benchmarks/attention_growth.py`), word error rates from attention/wer.json
(`benchmarks/attention_grid.py`); what was not measured stays empty.
"""

import json
from pathlib import Path

from mechanisms.found import HEADS, WIDTH, Mechanism, mechanisms

FRAME_RATE = 25  # frames a second behind an encoder's subsampling by four
COSTS = {"10 s": 10, "1 min": 60, "10 min": 600}  # seconds
PLACES = {
    "encoder": ("In an encoder", "`attention:` of a Conformer, Branchformer or E-Branchformer"),
    "tokens": ("Over a decoder's tokens", "`self_attention:` of a `TransformerDecoder`"),
    "memory": ("Over the encoder's output", "`cross_attention:` of a `TransformerDecoder`"),
}


def cost_lengths() -> list[int]:
    """T at which the table gives costs."""
    return [FRAME_RATE * seconds for seconds in COSTS.values()]


def read(path: Path) -> dict:
    """A JSON file, nothing where it is missing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def milliseconds(seconds: float | None) -> str:
    return (
        "" if seconds is None else f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"
    )


def growth_of(measured: dict, what: str) -> str:
    found = measured.get(f"{what}_exponent")
    return "" if found is None else f"T^{found:.2f}"


def error_rate(result: dict | None) -> str:
    if not result:
        return ""
    if "error" in result:
        return "failed"
    return f"{result['wer']:.1f} ({result['low']:.1f}-{result['high']:.1f})"


def line(mechanism: Mechanism, measured: dict, result: dict | None) -> list[str]:
    """The cells of a mechanism."""
    link = ""
    if mechanism.paper:
        link = f"[{mechanism.paper}](https://arxiv.org/abs/{mechanism.paper})"
    cells = [
        f"`{mechanism}`",
        link,
        ", ".join(mechanism.patterns),
        mechanism.complexity,
        "yes" if mechanism.streams else "no",
        f"{mechanism.parameters_added():+,}".replace("+0", "0"),
    ]
    if mechanism.place == "encoder":
        seconds = measured.get("seconds", {})
        cells += [milliseconds(seconds.get(str(n))) for n in cost_lengths()]
        cells += [growth_of(measured, "time"), growth_of(measured, "memory")]
    return [*cells, error_rate(result)]


def table(place: str, growth: dict, errors: dict) -> str:
    """The mechanisms of a place as Markdown."""
    columns = ["mechanism", "paper", "patterns", "complexity", "streams", "parameters added"]
    if place == "encoder":
        columns += [f"{name}, ms" for name in COSTS] + ["time", "memory"]
    columns.append("WER %")
    measured = {found["name"]: found for found in growth.get("mechanisms", ())}
    rows = [line(m, measured.get(str(m), {}), errors.get(str(m))) for m in mechanisms(place)]
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def page(docs: Path) -> str:
    """The text of docs/attention.md."""
    growth, wer = read(docs / "attention" / "growth.json"), read(docs / "attention" / "wer.json")
    budget = wer.get("budget", "one small budget, the same for all")
    parts = [
        "# Attention mechanisms",
        "Written by `benchmarks/attention_growth.py --page` from the code and from measurements.",
        "Patterns are those of CAB ([2210.07661](https://arxiv.org/abs/2210.07661)). Complexity in "
        "the number of frames T is what the docstring says. A mechanism streams if it has a "
        f"`step`. Parameters are added to plain softmax attention of width {WIDTH} with {HEADS} "
        "heads (rotary in an encoder), per layer. Costs are one forward pass of one layer over "
        f"one item of that length at {FRAME_RATE} frames a second, projections included, float32, "
        f"{growth.get('threads', 2)} threads (`benchmarks/attention_growth.py`); time and memory "
        "grow with this exponent from 4,000 frames on. WER is that of the "
        f"GRID test set after {budget} (`benchmarks/attention_grid.py`): enough to see whether a "
        "mechanism learns, too little to rank those that are close.",
    ]
    for place, (title, where) in PLACES.items():
        parts += [f"## {title}", f"{where}.", table(place, growth, wer.get("results", {}))]
    if growth:
        parts += ["## Growth", growth_table(growth), "![Growth](attention/growth.png)"]
    return "\n\n".join(parts) + "\n"


def growth_table(growth: dict) -> str:
    """Time and memory by T; empty where a pass would take too long or too much."""
    found = growth["mechanisms"]
    lengths = sorted({int(n) for one in found for n in one["seconds"]})
    lines = [["mechanism", *(f"{n:,}" for n in lengths)], ["---"] * (len(lengths) + 1)]
    for one in found:
        cells = [one["name"]]
        for n in map(str, lengths):
            seconds, memory = one["seconds"].get(n), one["bytes"].get(n)
            cells.append("" if seconds is None else f"{milliseconds(seconds)} / {memory / 1e6:.3g}")
        lines.append(cells)
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return "Milliseconds / MB added at the peak, by frames.\n\n" + text


def write_page(docs: Path) -> None:
    docs.mkdir(parents=True, exist_ok=True)
    path = docs / "attention.md"
    path.write_text(page(docs), encoding="utf-8")
    print(f"written to {path}")
