"""Claim: the native delay-penalised CTC is faster than k2's on a CPU, and than torch's plain one.

From log-probabilities to their gradient: 16 items of 400 frames and 40 tokens, and the same with
lengths and texts down to half; 500 and 4,468 units; a delay penalty of 0.01 a frame for ours and
k2, none for torch, which has none; two threads. k2 makes its graphs and prunes with its own default
beam; ours prunes nothing. k2 wants a Python and a torch of its own, so it runs in a process of its
own, in turn with ours; without it its rows have no peer.

    python benchmarks/fst.py [--quick] [--json FILE] [--k2-python PYTHON]

PYTHON is one with k2 1.23.4 and torch 1.13.1; the environment variable K2_PYTHON by default.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rows import against_peer, in_turn, save, spread

THREADS, BATCH, FRAMES, TOKENS = 2, 16, 400, 40
VOCABULARIES = (500, 4468)
PENALTY = 0.01
K2_TARGET, TORCH_TARGET = 2.5, 1.0


def inputs(units: int, frames: int, ragged: bool) -> tuple[torch.Tensor, ...]:
    """Log-probabilities (B, T, V) that learn, lengths, tokens (B, U) and their lengths.

    Drawn by NumPy: the same in both processes.
    """
    draw = np.random.Generator(np.random.PCG64(0))
    logits = torch.from_numpy(draw.standard_normal((BATCH, frames, units), dtype=np.float32))
    tokens = torch.from_numpy(draw.integers(1, units, (BATCH, TOKENS)))
    least = 2 if ragged else 1
    lengths = torch.linspace(frames, frames // least, BATCH).long()
    token_lengths = torch.linspace(TOKENS, TOKENS // least, BATCH).long()
    return logits.log_softmax(-1).requires_grad_(), lengths, tokens, token_lengths


def serve_k2(frames: int) -> None:
    """The process with k2: a request a line, the seconds it took and the loss as the answer."""
    import k2

    torch.set_num_threads(THREADS)
    made = {}
    for line in sys.stdin:
        units, ragged = json.loads(line)
        if (units, ragged) not in made:
            made[units, ragged] = inputs(units, frames, ragged)
        log_probs, lengths, tokens, token_lengths = made[units, ragged]
        segments = torch.tensor([[b, 0, n] for b, n in enumerate(lengths.tolist())]).int()
        texts = [t[:n].tolist() for t, n in zip(tokens, token_lengths)]  # noqa: B905
        begun = time.perf_counter()
        dense = k2.DenseFsaVec(log_probs, segments)
        loss = k2.ctc_loss(k2.ctc_graph(texts), dense, delay_penalty=PENALTY)
        torch.autograd.grad(loss, log_probs)
        print(json.dumps([time.perf_counter() - begun, loss.item()]), flush=True)


class K2:
    """Asks the process with k2."""

    def __init__(self, python: str, frames: int):
        self.process = subprocess.Popen(
            [python, __file__, "--serve-k2", str(frames)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, units: int, ragged: bool) -> tuple[float, float]:
        """Seconds and loss."""
        self.process.stdin.write(json.dumps([units, ragged]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the process with k2 ended: see above for what it said")
        return tuple(json.loads(answer))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def ctc_rows(k2: K2 | None, units: int, frames: int, ragged: bool, rounds: int) -> list[dict]:
    """Ours against k2 and torch at V units."""
    from speechattn.losses import delay_penalised_ctc_loss

    log_probs, lengths, tokens, token_lengths = inputs(units, frames, ragged)

    def ours() -> float:
        loss = delay_penalised_ctc_loss(log_probs, lengths, tokens, token_lengths, PENALTY).sum()
        torch.autograd.grad(loss, log_probs)
        return loss.item()

    def plain() -> float:
        loss = torch.nn.functional.ctc_loss(
            log_probs.transpose(0, 1), tokens, lengths, token_lengths, reduction="sum"
        )
        torch.autograd.grad(loss, log_probs)
        return loss.item()

    asked = []
    runs = {"ours": ours, "torch": plain}
    if k2 is not None:
        runs["k2"] = lambda: asked.append(k2(units, ragged))
    times = in_turn(runs, rounds)
    if k2 is not None:
        # Without what it takes to ask.
        times["k2"] = [seconds for seconds, _ in asked[1:]]
        print(f"loss: ours {ours():.2f}, k2 {asked[-1][1]:.2f} (pruned), torch {plain():.2f}")
    shape = f"B {BATCH}, T {frames}, U {TOKENS}{', ragged' if ragged else ''}, V {units}"
    title = f"delay-penalised CTC to its gradient, {shape}"
    for name, values in times.items():
        print(f"{title}, {name}, s: {spread(values)}", flush=True)
    median = {name: statistics.median(values) for name, values in times.items()}
    return [
        against_peer(f"{title}, k2", median["ours"], median.get("k2"), K2_TARGET, "s"),
        against_peer(
            f"{title}, torch's without a penalty",
            median["ours"],
            median["torch"],
            TORCH_TARGET,
            "s",
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 frames, fewer rounds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--k2-python", default=os.environ.get("K2_PYTHON"))
    parser.add_argument("--serve-k2", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_k2:
        serve_k2(options.serve_k2)
        return 0
    torch.set_num_threads(THREADS)
    frames, rounds = (100, 3) if options.quick else (FRAMES, 11)
    k2 = K2(options.k2_python, frames) if options.k2_python else None
    rows = []
    for units in VOCABULARIES:
        for ragged in (False, True):
            rows += ctc_rows(k2, units, frames, ragged, rounds)
    if k2 is not None:
        k2.close()
    for r in rows:
        ratio = "-" if r["ratio"] is None else f"{r['ratio']:.3g}"
        print(f"{r['name']}: ratio {ratio}, target {r['target']}")
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
