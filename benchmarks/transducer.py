"""Claim: the transducer's losses are faster than k2's and torchaudio's on a CPU.

From the joiner's scores to their gradient: the full loss of 8 items of 200 frames, 40 tokens and
500 units with a delay penalty of 0.01 a frame, none against torchaudio's, which has none; and the
pruned loss of 16 items of 400 frames and 40 tokens, of which 5 columns a frame are scored: simple
loss, columns to keep, and the loss of the scores of these; 500 and 4,468 units. All of it again
with lengths and texts down to half. Two threads. k2 wants a Python and a torch of its own, so it
runs in a process of its own, in turn with ours; without it its rows have no peer.

    python benchmarks/transducer.py [--quick] [--json FILE] [--k2-python PYTHON]

PYTHON is one with k2 1.23.4 and torch 1.13.1; the environment variable K2_PYTHON by default.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from rows import against_peer, in_turn, save, spread

THREADS, TOKENS, WIDTH = 2, 40, 5
FULL = (8, 200)
PRUNED = (16, 400)
VOCABULARIES = (500, 4468)
PENALTY = 0.01
TARGET = 1.0


class Inputs:
    """Draw scores with gradients, and texts, by NumPy: the same in both processes.

    Attributes:
        lengths: (B,) frames.
        tokens: (B, 40).
        token_lengths: (B,).
        scores: what learns: the joiner's (B, T, 41, V); or the simple joiner's (B, T, V) and
            (B, 41, V) and the joiner's (B, T, 5, V).
    """

    def __init__(self, kind: str, batch: int, frames: int, units: int, ragged: bool):
        draw = np.random.Generator(np.random.PCG64(0))
        shapes = [(frames, TOKENS + 1)]
        if kind == "pruned":
            shapes = [(frames,), (TOKENS + 1,), (frames, WIDTH)]
        self.scores = [
            torch.from_numpy(draw.standard_normal((batch, *s, units), dtype=np.float32))
            for s in shapes
        ]
        for scores in self.scores:
            scores.requires_grad_()
        self.tokens = torch.from_numpy(draw.integers(1, units, (batch, TOKENS)))
        least = 2 if ragged else 1
        self.lengths = torch.linspace(frames, frames // least, batch).long()
        self.token_lengths = torch.linspace(TOKENS, TOKENS // least, batch).long()


def by_k2(x: Inputs) -> torch.Tensor:
    import k2

    boundary = torch.zeros(len(x.tokens), 4, dtype=torch.int64)
    boundary[:, 2], boundary[:, 3] = x.token_lengths, x.lengths
    options = {"boundary": boundary, "delay_penalty": PENALTY, "reduction": "sum"}
    if len(x.scores) == 1:
        return k2.rnnt_loss(x.scores[0], x.tokens, 0, **options)
    am, lm, scores = x.scores
    simple, grads = k2.rnnt_loss_smoothed(
        lm, am, x.tokens, 0, 0.25, 0.0, return_grad=True, **options
    )
    ranges = k2.get_rnnt_prune_ranges(*grads, boundary, WIDTH)
    return 0.5 * simple + k2.rnnt_loss_pruned(scores, x.tokens, ranges, 0, **options)


def by_us(x: Inputs, penalty: float = PENALTY) -> torch.Tensor:
    from speechattn.kernels.lattice.pruned_transducer import (
        prune_ranges,
        pruned_transducer,
        simple_transducer,
    )
    from speechattn.kernels.lattice.transducer import transducer

    texts = (x.lengths, x.token_lengths)
    if len(x.scores) == 1:
        return transducer(
            x.scores[0], x.lengths, x.tokens, x.token_lengths, delay_penalty=penalty
        ).sum()
    am, lm, scores = x.scores
    simple, *grads = simple_transducer(
        am, lm, x.tokens, *texts, lm_only_scale=0.25, delay_penalty=penalty
    )
    ranges = prune_ranges(*grads, *texts, WIDTH)
    pruned = pruned_transducer(scores, x.tokens, ranges, *texts, delay_penalty=penalty)
    return 0.5 * simple.sum() + pruned.sum()


def by_torchaudio(x: Inputs) -> torch.Tensor:
    from torchaudio.functional import rnnt_loss

    texts = (x.tokens.int(), x.lengths.int(), x.token_lengths.int())
    return rnnt_loss(x.scores[0], *texts, blank=0, reduction="sum")


def learned(loss: torch.Tensor, x: Inputs) -> float:
    """Compute the loss and its gradient; return the loss."""
    torch.autograd.grad(loss, x.scores)
    return loss.item()


def serve_k2() -> None:
    """Serve as the process with k2: a request a line, answered by seconds and loss."""
    import k2  # noqa: F401

    torch.set_num_threads(THREADS)
    asked, made = None, None
    for line in sys.stdin:
        if line != asked:
            asked, made = line, None  # one at a time: they are large
            made = Inputs(*json.loads(line))
        begun = time.perf_counter()
        loss = learned(by_k2(made), made)
        print(json.dumps([time.perf_counter() - begun, loss]), flush=True)


class K2:
    """A client of the process with k2."""

    def __init__(self, python: str):
        self.process = subprocess.Popen(
            [python, __file__, "--serve-k2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *inputs) -> tuple[float, float]:
        """Return seconds and loss."""
        self.process.stdin.write(json.dumps(inputs) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the process with k2 ended: see above for what it said")
        return tuple(json.loads(answer))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def rows_of(k2: K2 | None, rounds: int, *inputs) -> list[dict]:
    """Measure ours against k2, and against torchaudio for the full loss."""
    kind, batch, frames, units, ragged = inputs
    x = Inputs(*inputs)
    said = {}
    runs = {"ours": lambda: said.update(ours=learned(by_us(x), x))}
    if kind == "full":
        runs["ours, no penalty"] = lambda: said.update(plain=learned(by_us(x, 0.0), x))
        runs["torchaudio"] = lambda: said.update(torchaudio=learned(by_torchaudio(x), x))
    asked = []
    if k2 is not None:
        runs["k2"] = lambda: asked.append(k2(*inputs))
    times = in_turn(runs, rounds)
    if k2 is not None:
        # Without what it takes to ask.
        times["k2"] = [seconds for seconds, _ in asked[1:]]
        said["k2"] = asked[-1][1]
    shape = f"B {batch}, T {frames}, U {TOKENS}{', ragged' if ragged else ''}, V {units}"
    title = f"{kind} transducer to its gradient, {shape}"
    print(f"{title}, losses: " + ", ".join(f"{name} {value:.2f}" for name, value in said.items()))
    for name, values in times.items():
        print(f"{title}, {name}, s: {spread(values)}", flush=True)
    median = {name: statistics.median(values) for name, values in times.items()}
    rows = [against_peer(f"{title}, k2", median["ours"], median.get("k2"), TARGET, "s")]
    if kind == "full":
        mine, theirs = median["ours, no penalty"], median["torchaudio"]
        name = f"{title}, torchaudio's without a penalty"
        rows.append(against_peer(name, mine, theirs, TARGET, "s"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the frames, 3 rounds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--k2-python", default=os.environ.get("K2_PYTHON"))
    parser.add_argument("--serve-k2", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_k2:
        serve_k2()
        return 0
    warnings.filterwarnings("ignore", category=UserWarning)  # torchaudio's of its last days
    torch.set_num_threads(THREADS)
    fewer, rounds = (4, 3) if options.quick else (1, 7)
    k2 = K2(options.k2_python) if options.k2_python else None
    rows = []
    for kind, (batch, frames), vocabularies in (
        ("full", FULL, VOCABULARIES[:1]),
        ("pruned", PRUNED, VOCABULARIES),
    ):
        for units in vocabularies:
            for ragged in (False, True):
                rows += rows_of(k2, rounds, kind, batch, frames // fewer, units, ragged)
    if k2 is not None:
        k2.close()
    for r in rows:
        ratio = "-" if r["ratio"] is None else f"{r['ratio']:.3g}"
        print(f"{r['name']}: ratio {ratio}, target {r['target']}")
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
