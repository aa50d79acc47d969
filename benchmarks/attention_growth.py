"""Claim: how time and memory of every attention mechanism grow with the number of frames.

One forward pass over one item, float32, width 256, 4 heads, projections included, each mechanism
of `speechattn.attention` that an encoder takes, from 500 to 64,000 frames: seconds, what the pass
adds to the process at its peak, and the exponent from 4,000 frames on, by least squares. A length
is left out where the one before says that a pass would take more than a minute or more than 8 GB.
Mechanisms that are linear by their own word are held to it.

    python benchmarks/attention_growth.py [--quick] [--json FILE] [--only WORD] [--docs DIR]
    python benchmarks/attention_growth.py --page    docs/attention.md alone, from what is kept

Writes DIR/attention/growth.json, which is kept up by --only, DIR/attention/growth.png, and
DIR/attention.md (`mechanisms/table.py`). With --quick, up to 2,000 frames, it writes none of them
unless --docs says where.
Every pass has a process of its own, forked before torch has computed anything.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from mechanisms.found import HEADS, WIDTH, Mechanism, mechanisms
from mechanisms.table import cost_lengths, write_page
from rows import row, save

from speechattn.attention import relative_positions

THREADS = 2
FRAMES = [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000]
QUICK = [500, 1000, 2000]
MOST_SECONDS, MOST_BYTES = 60.0, 8e9
MEASURE_SECONDS, MOST_ROUNDS = 2.0, 15
LINEAR = 1.15  # exponent that passes for linear
LONG = 4000  # frames from which on it is taken: below, what does not grow still counts
DOCS = Path(__file__).resolve().parent.parent / "docs"


def status(field: str) -> int:
    """A number of bytes from /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def measure(mechanism: Mechanism, frames: int, threads: int, answer: Connection) -> None:
    """Send seconds of each pass and the bytes that the first one added, or what went wrong."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        module = mechanism.make().eval()

        def run(frames: int) -> torch.Tensor:
            return module(x[:, :frames], torch.tensor([frames]), positions(frames), chunks)

        def positions(frames: int) -> torch.Tensor | None:
            if not module.uses_positions:
                return None
            return table[longest - frames : longest + frames - 1]

        chunks = None
        if "noncausal self" not in mechanism.patterns:
            from speechattn.masks import Chunks

            chunks = Chunks(1)
        longest = max(frames, 64)
        x = torch.randn(1, longest, WIDTH)
        table = relative_positions(longest, WIDTH) if module.uses_positions else None
        with torch.inference_mode():
            run(64)  # libraries' own buffers
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = status("VmRSS")
            seconds = []
            while not seconds or (sum(seconds) < MEASURE_SECONDS and len(seconds) < MOST_ROUNDS):
                begun = time.perf_counter()
                y = run(frames)
                seconds.append(time.perf_counter() - begun)
                if len(seconds) == 1:
                    memory = status("VmHWM") - before
                del y
        # The first pass finds nothing warm: it counts where it is the only one.
        answer.send({"seconds": seconds[1:] or seconds, "bytes": memory})
    except Exception as error:
        answer.send({"error": f"{type(error).__name__}: {error}"})


def in_own_process(mechanism: Mechanism, frames: int, threads: int) -> dict:
    """What `measure` found."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=measure, args=(mechanism, frames, threads, theirs))
    child.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        found = {"error": "the process was killed"}
    child.join()
    return found


def long_ones(lengths: Iterable[int]) -> list[int]:
    """Those that show how a mechanism grows: from 4,000 frames on, or the upper half."""
    lengths = sorted(lengths)
    return [n for n in lengths if n >= min(LONG, lengths[-1] / 2)]


def exponent(points: dict[int, float]) -> float | None:
    """Of the growth over `long_ones`, by least squares of logarithms; None where there is one."""
    lengths = long_ones(points)
    if len(lengths) < 2:
        return None
    x = [math.log(n) for n in lengths]
    y = [math.log(max(points[n], 1e-9)) for n in lengths]
    return statistics.linear_regression(x, y).slope


def grow(mechanism: Mechanism, lengths: list[int], threads: int) -> dict:
    """What `growth.json` has of a mechanism.

    Args:
        mechanism: what to measure.
        lengths: T, ascending.
        threads: of torch.
    """
    seconds: dict[int, float] = {}
    memory: dict[int, float] = {}
    spread: dict[int, list[float]] = {}
    error = None
    for frames in lengths:
        if seconds:
            last = max(seconds)
            # A square at most, from below which a mechanism only seems to be linear.
            square = (frames / last) ** 2
            if seconds[last] * square > MOST_SECONDS and not _linear_so_far(seconds):
                break
            if memory[last] * square > MOST_BYTES and not _linear_so_far(memory):
                break
        found = in_own_process(mechanism, frames, threads)
        if "error" in found:
            error = f"{frames} frames: {found['error']}"
            break
        seconds[frames] = statistics.median(found["seconds"])
        spread[frames] = [min(found["seconds"]), max(found["seconds"])]
        memory[frames] = found["bytes"]
        print(f"{mechanism}, T = {frames}: {seconds[frames]:.4g} s, {memory[frames] / 1e6:.4g} MB",
              flush=True)  # fmt: skip
        if seconds[frames] > MOST_SECONDS:
            break
    return {
        "name": str(mechanism),
        "seconds": seconds,
        "spread": spread,
        "bytes": memory,
        "error": error,
    }


def with_exponents(found: dict) -> dict:
    """What was measured of a mechanism, lengths as JSON keeps them, and how it grows."""
    exponents = {
        f"{what}_exponent": exponent({int(n): v for n, v in found[field].items()})
        for what, field in (("time", "seconds"), ("memory", "bytes"))
    }
    return {**found, **exponents}


def _linear_so_far(points: dict[int, float]) -> bool:
    found = exponent(points)
    return found is not None and found <= 1.3


def rows_of(mechanism: Mechanism, measured: dict) -> list[dict]:
    """Exponents; a bound only where the code says that the mechanism is linear."""
    rows = []
    bound = mechanism.complexity == "O(T)"
    for what in ("time", "memory"):
        found = measured[f"{what}_exponent"]
        lengths = long_ones(measured["seconds"])
        between = f" from T = {lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else ""
        name = f"{mechanism}, {what}, exponent{between}"
        met = found is not None and (not bound or found <= LINEAR)
        target = f"<= {LINEAR}" if bound else "none"
        rows.append(row(name, found, "bound", None, target, "", met))
    return rows


def plot(growth: dict, path: Path) -> None:
    """Time and memory over T, both axes logarithmic, a line a mechanism."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(15, 7), layout="constrained")
    colours = pyplot.get_cmap("tab20").colors
    parts = (("seconds", 1.0, "seconds"), ("bytes", 1e-6, "MB added at the peak"))
    for panel, (field, unit, label) in zip(axes, parts, strict=True):
        for index, found in enumerate(growth["mechanisms"]):
            points = sorted((int(n), v * unit) for n, v in found[field].items())
            points = [(n, v) for n, v in points if v > 0]
            if points:
                style = ("-", "--", ":")[index // len(colours) % 3]
                colour = colours[index % len(colours)]
                panel.plot(*zip(*points, strict=True), style, marker=".", color=colour,
                           label=found["name"])  # fmt: skip
        panel.set(xscale="log", yscale="log", xlabel="frames", ylabel=label)
        panel.grid(True, which="major", alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(f"One forward pass, width {WIDTH}, {HEADS} heads, projections included")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def merged(before: list[dict], new: list[dict]) -> list[dict]:
    """Those of mechanisms that still exist, the new ones over the old ones, in the code's order."""
    found = {one["name"]: one for one in (*before, *new)}
    return [found[str(m)] for m in mechanisms("encoder") if str(m) in found]


def write_growth(docs: Path, measured: list[dict], threads: int) -> None:
    """What was measured and what is kept, into attention/growth.json, its plot, attention.md."""
    folder = docs / "attention"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "growth.json"
    before = json.loads(path.read_text())["mechanisms"] if path.exists() else []
    kept = [with_exponents(found) for found in merged(before, measured)]
    growth = json.loads(json.dumps({"threads": threads, "mechanisms": kept}))
    path.write_text(json.dumps(growth, indent=1) + "\n")
    plot(growth, folder / "growth.png")
    write_page(docs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 2,000 frames")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="mechanisms with this in their name")
    parser.add_argument("--docs", type=Path, help="where to write (default: docs, or nowhere)")
    parser.add_argument("--threads", type=int, default=THREADS, help="of torch (default 2)")
    parser.add_argument("--page", action="store_true", help="measure nothing, write attention.md")
    options = parser.parse_args()
    docs = options.docs or (None if options.quick and not options.page else DOCS)
    if options.page:
        write_growth(docs, [], options.threads)
        return 0
    lengths = QUICK if options.quick else sorted({*FRAMES, *cost_lengths()})
    chosen = [m for m in mechanisms("encoder") if options.only in str(m)]
    measured = [with_exponents(grow(m, lengths, options.threads)) for m in chosen]
    failed = [m["name"] + ", " + m["error"] for m in measured if m["error"]]
    if docs is not None:
        write_growth(docs, measured, options.threads)
    rows = [r for m, found in zip(chosen, measured, strict=True) for r in rows_of(m, found)]
    save(rows, options.json)
    for line in failed:
        print(f"not measured: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
