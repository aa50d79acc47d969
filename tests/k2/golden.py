"""Writes what k2 makes of the cases of ctc_cases.py, for tests that have no k2.

    python tests/k2/golden.py tests/losses/golden_delay_ctc.json [ARRAYS.npz]

in an environment with torch 1.13.1 and k2 1.23.4; speechattn is not needed. ARRAYS.npz takes the
losses and the whole gradients, 20 MB of them, which tests/k2/test_ctc.py asks for.
"""

import json
import sys

import k2
import numpy as np
import torch
from ctc_cases import CASES, Case, case

# Keeps all arcs: k2 prunes before it applies the penalty.
BEAM = 1e9


def k2_ctc(c: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses (B,), and the gradient (B, T, V) of those that are finite with respect to logits."""
    logits = torch.from_numpy(c.logits).requires_grad_()
    segments = torch.tensor([[b, 0, n] for b, n in enumerate(c.lengths.tolist())]).int()
    dense = k2.DenseFsaVec(logits.log_softmax(-1), segments)
    graphs = k2.ctc_graph(c.texts, modified=c.modified)
    losses = k2.ctc_loss(graphs, dense, BEAM, c.delay_penalty, reduction="none")
    finite = torch.isfinite(losses)
    (gradient,) = torch.autograd.grad(losses[finite].sum(), logits)
    return losses.detach(), gradient


def summary(c: Case, losses: np.ndarray, gradient: np.ndarray) -> dict:
    """What is kept of a case: losses, and of each item's gradient its norm and a weighted sum."""
    finite = np.isfinite(losses)
    gradient = gradient.astype(np.float64)
    return {
        "losses": [float(f"{x:.7g}") if ok else None for x, ok in zip(losses, finite)],  # noqa: B905
        "norms": [float(f"{x:.7g}") for x in np.sqrt((gradient**2).sum((1, 2)))],
        "sums": [float(f"{x:.7g}") for x in (gradient * c.weights).sum((1, 2))],
    }


def main(path: str, arrays: str | None = None) -> None:
    """Writes the files."""
    found, whole = [], {}
    for seed in range(CASES):
        c = case(seed)
        losses, gradient = (x.numpy() for x in k2_ctc(c))
        found.append(summary(c, losses, gradient))
        whole[f"losses{seed}"], whole[f"gradient{seed}"] = losses, gradient
    lines = ",\n".join(json.dumps(f) for f in found)
    with open(path, "w") as file:
        file.write(f"[\n{lines}\n]\n")
    if arrays is not None:
        np.savez(arrays, **whole)


if __name__ == "__main__":
    main(*sys.argv[1:])
