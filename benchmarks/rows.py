"""What the benchmarks share: timing in turn, and the rows that they write."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def row(name, ours, peer, ratio, target, unit, met) -> dict:
    """One claim: see docs/benchmarks.md for the columns."""
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "target": target,
        "unit": unit,
        "met": met,
    }


def against_peer(name: str, ours, peer, target: float, unit: str) -> dict:
    """A row where less is better."""
    ratio = peer / ours if peer and ours else None
    return row(name, ours, peer, ratio, target, unit, ratio is not None and ratio >= target)


def times_floor(name: str, ours: float, floor: float, target: float | None, unit: str) -> dict:
    """A row of how far above a lower bound something is."""
    ratio = ours / floor
    text = "none" if target is None else f"<= {target}"
    met = target is None or ratio <= target
    return row(f"{name}, times the floor (the peer here)", ours, floor, ratio, text, unit, met)


def spread(values: list[float]) -> str:
    """Median and extremes, to print."""
    return f"median {statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def in_turn(
    functions: Mapping[str, Callable[[], object]], rounds: int, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds that each function took, one after another in every round.

    Args:
        functions: by name.
        rounds: how many times each is timed.
        warm: run each once before, untimed.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + warm):
        for name, function in functions.items():
            begun = time.perf_counter()
            function()
            if turn >= warm:
                times[name].append(time.perf_counter() - begun)
    return times


def save(rows: list[dict], path: Path | None) -> None:
    """Write rows where --json says."""
    if path is not None:
        path.write_text(json.dumps(rows, indent=1) + "\n")
