"""Claim: attention here is faster than its peers', and needs less memory.

Relative positions: the module against ESPnet 202611's, H 12, Dh 64, D 768, projections included,
the same weights, outputs compared first; `packed weights` is what a `Transcriber` runs, the same
with weights laid out for the processor. Local attention (window 128) and linear attention, H 4,
Dh 64: against torch's `scaled_dot_product_attention` at 16,000 frames, and how time and memory grow
between 4,000 and 64,000. Float32 forward passes unless the row says otherwise. Each case has a
process of its own, in which ours and the peer take turns.

    python benchmarks/attention.py [--quick] [--json FILE] [--only WORD]

ESPnet is found in the environment of `make test-espnet`, which `make bench` takes where it is.
"""

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rows import against_peer, in_turn, row, save, spread
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from speechattn.attention import RelativeSelfAttention, relative_positions
from speechattn.deploy import packing
from speechattn.kernels.attention.linear import linear_attention
from speechattn.kernels.attention.local import local_attention
from speechattn.kernels.attention.window import AttentionWindow

THREADS = 2
RELATIVE_HEADS, RELATIVE_WIDTH = 12, 768
HEADS, DEPTH, WINDOW = 4, 64, 128
WIDTH = HEADS * DEPTH
LONG = 16_000
# Times ESPnet's speed forwards, by frames.
FORWARD_TARGETS = {250: 1.15, 750: 1.5, 1500: 3.0, 4000: 5.0}
TRAINING_TARGET, MEMORY_TARGET = 2.0, 6.0
LONG_TARGET, EXPONENT = 20.0, 1.15
NAMES = {
    "linear_q": "query", "linear_k": "key", "linear_v": "value", "linear_out": "output",
    "linear_pos": "position", "pos_bias_u": "content_bias", "pos_bias_v": "position_bias",
}  # fmt: skip


def relative_runs(frames: int, task: str) -> dict[str, Callable[[], object]]:
    """A forward pass, or one and the way back, of ours and of ESPnet's where it is installed."""
    torch.manual_seed(0)
    ours = RelativeSelfAttention(RELATIVE_WIDTH, RELATIVE_HEADS).train(task == "training")
    x = torch.randn(1, frames, RELATIVE_WIDTH)
    positions = relative_positions(frames, RELATIVE_WIDTH)
    lengths, mask = torch.tensor([frames]), torch.ones(1, 1, frames, dtype=torch.bool)
    forwards = {"ours": lambda: ours(x, lengths, positions)}
    try:
        from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
            RelPositionMultiHeadedAttention,
        )
    except ImportError:
        print("ESPnet is not installed")
    else:
        theirs = RelPositionMultiHeadedAttention(RELATIVE_HEADS, RELATIVE_WIDTH, 0.0)
        theirs.train(task == "training")
        weights = {}
        for name, value in theirs.state_dict().items():
            first, *rest = name.split(".")
            weights[".".join([NAMES[first], *rest])] = value
        ours.load_state_dict(weights)
        forwards["peer"] = lambda: theirs(x, x, x, positions[None], mask)
    if task == "forward":
        packed = packing.pack(copy.deepcopy(ours))
        forwards["packed"] = lambda: packed(x, lengths, positions)

    def run(forward: Callable[[], Tensor]) -> Tensor:
        if task == "training":
            y = forward()
            y.square().mean().backward()
            return y.detach()
        with torch.inference_mode():
            return forward()

    return {name: lambda f=f: run(f) for name, f in forwards.items()}


def time_relative(frames: int, task: str, rounds: int) -> dict:
    runs = relative_runs(frames, task)
    agree(runs)
    return in_turn(runs, rounds)


def memory_relative(frames: int, who: str) -> int | None:
    """Bytes that a forward pass adds at its peak."""
    small, runs = relative_runs(16, "forward"), relative_runs(frames, "forward")
    if who not in runs:
        return None
    small[who]()  # libraries' own buffers
    return peak_of(runs[who])


def agree(runs: dict[str, Callable[[], Tensor]], tolerance: float = 1e-3) -> None:
    """That all give the same, relative to the largest value."""
    results = {name: run() for name, run in runs.items()}
    first = results["ours"]
    for name, y in results.items():
        worst = (y - first).abs().max() / first.abs().max()
        if not worst < tolerance:
            raise RuntimeError(f"ours and {name} differ by {worst:.2g}")


def heads_of(frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (1, T, H, Dh)."""
    torch.manual_seed(0)
    return tuple(torch.randn(1, frames, HEADS, DEPTH) for _ in range(3))


def long_run(kind: str, frames: int) -> Callable[[], Tensor]:
    """A kernel on one item."""
    q, k, v = heads_of(frames)
    lengths = torch.tensor([frames])
    if kind == "exact":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return lambda: scaled_dot_product_attention(q, k, v)
    if kind == "local":
        return lambda: local_attention(q, k, v, lengths, window=AttentionWindow.from_size(WINDOW))
    return lambda: linear_attention(q, k, v, lengths)


def time_long(kind: str, frames: int, rounds: int) -> dict:
    run = long_run(kind, frames)
    with torch.inference_mode():
        # The peer takes seconds: it is timed less often.
        peer = in_turn({"peer": long_run("exact", frames)}, max(rounds // 3, 1), warm=False)
        return in_turn({"ours": run}, rounds) | peer


def time_growth(kind: str, frames: list[int], rounds: int) -> list:
    """The seconds of each round, by number of frames."""
    runs = {n: long_run(kind, n) for n in frames}
    with torch.inference_mode():
        return list(in_turn(runs, rounds).values())


def memory_growth(kind: str, frames: int) -> int:
    """Bytes that a pass adds at its peak, its output among them."""
    small, run = long_run(kind, 300), long_run(kind, frames)
    with torch.inference_mode():
        small()
        return peak_of(run)


def peak_of(run: Callable[[], object]) -> int:
    """Bytes that a call adds to this process at its peak, what it returns among them."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    result = run()
    peak = status("VmHWM") - before
    del result
    return peak


def status(field: str) -> int:
    """A number of bytes from /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


WORKERS = {f.__name__: f for f in (time_relative, memory_relative, time_long, time_growth,
                                   memory_growth)}  # fmt: skip


def in_own_process(worker: Callable, *arguments) -> object:
    """What a worker returns, from a fresh process; None where it was killed."""
    asked = json.dumps([worker.__name__, *arguments])
    threads = str(torch.get_num_threads())
    command = [sys.executable, __file__, "--threads", threads, "--worker", asked]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode < 0:
        print(f"{worker.__name__} {arguments}: killed by signal {-done.returncode}")
        return None
    if done.returncode:
        raise RuntimeError(f"{worker.__name__} {arguments} failed")
    return json.loads(done.stdout.splitlines()[-1])


def medians(title: str, times: dict[str, list[float]] | None) -> dict[str, float]:
    """Milliseconds by name; prints the spread."""
    found = {}
    for name, values in (times or {}).items():
        values = [1e3 * v for v in values]
        print(f"{title}, {name}, ms: {spread(values)}", flush=True)
        found[name] = statistics.median(values)
    return found


def relative_rows(frames: int, task: str, rounds: int) -> list[dict]:
    title = f"relative attention 12 x 64, {task}, T = {frames}"
    found = medians(title, in_own_process(time_relative, frames, task, rounds))
    target = TRAINING_TARGET if task == "training" else FORWARD_TARGETS[frames]
    return [
        against_peer(title + text, found[name], found.get("peer"), target, "ms")
        for name, text in (("ours", ""), ("packed", ", packed weights"))
        if name in found
    ] or [against_peer(title, None, None, target, "ms")]


def relative_memory(frames: int) -> dict:
    title = f"relative attention 12 x 64, forward, T = {frames}, memory added"
    ours, peer = (in_own_process(memory_relative, frames, who) for who in ("ours", "peer"))
    ours, peer = (None if n is None else n / 1e6 for n in (ours, peer))
    print(f"{title}, MB: ours {ours}, peer {peer}", flush=True)
    return against_peer(title, ours, peer, MEMORY_TARGET, "MB")


def long_rows(kind: str, rounds: int) -> dict:
    window = f", window {WINDOW}" if kind == "local" else ""
    title = f"{kind} attention 4 x 64{window}, T = {LONG}, against torch's exact attention"
    found = medians(title, in_own_process(time_long, kind, LONG, rounds))
    return against_peer(title, found.get("ours"), found.get("peer"), LONG_TARGET, "ms")


def growth_rows(kind: str, frames: list[int], rounds: int) -> list[dict]:
    """Exponents of time and memory between the shortest and the longest."""
    title = f"{kind} attention 4 x 64, {{}}, exponent between T = {frames[0]} and {frames[-1]}"
    times = in_own_process(time_growth, kind, frames, rounds)
    memory = [in_own_process(memory_growth, kind, n) for n in (frames[0], frames[-1])]
    measured = {"time": None, "memory": None}
    if times is not None:
        times = medians(title.format("time"), dict(zip(map(str, frames), times, strict=True)))
        measured["time"] = [times[str(n)] for n in (frames[0], frames[-1])]
    if None not in memory:
        print(f"{title.format('memory')}, MB: {[n / 1e6 for n in memory]}", flush=True)
        measured["memory"] = memory
    rows = []
    for name, values in measured.items():
        found = None
        if values is not None:
            found = math.log(values[1] / values[0]) / math.log(frames[-1] / frames[0])
        met = found is not None and found <= EXPONENT
        rows.append(row(title.format(name), found, "bound", None, f"<= {EXPONENT}", "", met))
    return rows


def benchmark(quick: bool, only: str) -> list[dict]:
    """All rows; `quick` is short inputs and few rounds."""
    growth = [1000, 4000] if quick else [4000, 16_000, 64_000]
    cases = [(relative_rows, n, "forward", 3 if quick else rounds)
             for n, rounds in ((250, 41), (750, 21), (1500, 11), (4000, 11))
             if not (quick and n > 750)]  # fmt: skip
    cases.append((relative_memory, 1000 if quick else 4000))
    if not quick:
        cases.append((relative_rows, 1500, "training", 7))
    for kind in ("local", "linear"):
        if not quick:
            cases.append((long_rows, kind, 9))
        cases.append((growth_rows, kind, growth, 3 if quick else 7))
    rows = []
    for function, *arguments in cases:
        if only in f"{function.__name__} {' '.join(map(str, arguments))}":
            found = function(*arguments)
            rows += found if isinstance(found, list) else [found]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short inputs, few rounds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="cases with this in 'function arguments'")
    parser.add_argument("--threads", type=int, default=THREADS, help="of torch (default 2)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.worker:
        name, *arguments = json.loads(options.worker)
        print(json.dumps(WORKERS[name](*arguments)))
        return 0
    save(benchmark(options.quick, options.only), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
