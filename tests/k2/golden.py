"""Writes what k2 makes of the cases of ctc_cases.py, for tests that have no k2.

    python tests/k2/golden.py tests/losses/golden_delay_ctc.json [ARRAYS.npz]
    python tests/k2/golden.py --transducer tests/kernels/lattice/golden_transducer.json [ARRAYS.npz]

in an environment with torch 1.13.1 and k2 1.23.4; speechattn is not needed. ARRAYS.npz takes the
losses and the whole gradients, 20 MB of them, which tests/k2/test_ctc.py asks for. With
--transducer they are those of transducer_cases.py, of which the first KEPT go into the JSON.
"""

import json
import sys

import k2
import numpy as np
import torch
from ctc_cases import CASES, Case, case
from transducer_cases import CASES as TRANSDUCER_CASES
from transducer_cases import Case as TransducerCase
from transducer_cases import case as transducer_case
from transducer_cases import occupied, summed

# Keeps all arcs: k2 prunes before it applies the penalty.
BEAM = 1e9
# Of the transducer's cases.
KEPT = 24


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
    """Write the files."""
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


def k2_transducer(c: TransducerCase) -> dict[str, torch.Tensor]:
    """The losses (B,) of a case, their gradients, and the columns that pruning leaves."""
    am, lm, full, kept = (
        torch.from_numpy(x).requires_grad_() for x in (c.am, c.lm, c.full, c.kept)
    )
    tokens = torch.from_numpy(c.tokens)
    boundary = torch.zeros(len(tokens), 4, dtype=torch.int64)
    boundary[:, 2], boundary[:, 3] = torch.from_numpy(c.token_lengths), torch.from_numpy(c.lengths)
    options = (boundary, c.topology, c.delay_penalty, "none")
    scales = (c.lm_only_scale, c.am_only_scale)
    simple, (px, py) = k2.rnnt_loss_smoothed(lm, am, tokens, 0, *scales, *options, return_grad=True)
    ranges = k2.get_rnnt_prune_ranges(px, py, boundary, c.kept.shape[2])
    losses = {
        "full": (k2.rnnt_loss(full, tokens, 0, *options), {"full": full}),
        "simple": (simple, {"am": am, "lm": lm}),
        "pruned": (k2.rnnt_loss_pruned(kept, tokens, ranges, 0, *options), {"kept": kept}),
    }
    found = {"px": px, "py": py, "ranges": ranges}
    drawn = (torch.from_numpy(x) for x in occupied(c))
    found["windows"] = k2.get_rnnt_prune_ranges(*drawn, boundary, c.kept.shape[2])
    for name, (loss, inputs) in losses.items():
        gradients = torch.autograd.grad(loss[torch.isfinite(loss)].sum(), list(inputs.values()))
        found[name] = loss.detach()
        found.update({f"gradient_{x}": g for x, g in zip(inputs, gradients)})  # noqa: B905
    return found


def transducer_summary(c: TransducerCase, found: dict[str, np.ndarray]) -> dict:
    """What is kept of a case: losses, first columns, norms and weighted sums of gradients."""
    kept = {name: found[name][..., 0].tolist() for name in ("ranges", "windows")}
    for name, value in found.items():
        if name in ("full", "simple", "pruned"):
            kept[name] = [float(f"{x:.7g}") if np.isfinite(x) else None for x in value]
        elif name.startswith("gradient_"):
            norms = np.sqrt((value.astype(np.float64) ** 2).reshape(len(value), -1).sum(1))
            kept[f"norms_{name[9:]}"] = [float(f"{x:.7g}") for x in norms]
            kept[f"sums_{name[9:]}"] = [float(f"{x:.7g}") for x in summed(c.weights, value)]
    return kept


def main_transducer(path: str, arrays: str | None = None) -> None:
    """Write the files."""
    kept, whole = [], {}
    for seed in range(KEPT if arrays is None else TRANSDUCER_CASES):
        c = transducer_case(seed)
        found = {name: value.numpy() for name, value in k2_transducer(c).items()}
        if seed < KEPT:
            kept.append(transducer_summary(c, found))
        whole.update({f"{name}{seed}": value for name, value in found.items()})
    lines = ",\n".join(json.dumps(k) for k in kept)
    with open(path, "w") as file:
        file.write(f"[\n{lines}\n]\n")
    if arrays is not None:
        np.savez(arrays, **whole)


if __name__ == "__main__":
    if sys.argv[1] == "--transducer":
        main_transducer(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
