"""The sum over all paths of a graph, the denominator of lattice-free MMI.

Forward-backward over a hidden Markov model in probabilities that are normalised to sum 1 in each
frame (Povey et al., "Purely sequence-trained neural networks for ASR based on lattice-free MMI",
2016, section 2.4). A frame is a product with a sparse matrix, for all items at once.

Legend: see `speechattn.kernels`; S states.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class GraphMatrices:
    """A graph whose states are each entered by one unit only, as CTC's are.

    Attributes:
        onward: (S, S) sparse float64, probability of state i after state j.
        back: (S, S) sparse float64, the transpose.
        label: (S,) int64, the unit on the arcs into a state.
        final: (S,) float64, probability of ending in a state.
    """

    onward: Tensor
    back: Tensor
    label: Tensor
    final: Tensor

    @classmethod
    def from_arcs(cls, arcs: Any) -> "GraphMatrices":
        """Build the matrices of a graph, of arcs like `speechattn.decoding.fst.arcs.Arcs`.

        Raises:
            ValueError: a state is entered by two units, as in the topology `modified`.
        """
        label = np.zeros(arcs.states, np.int64)
        label[arcs.target] = arcs.label
        if (label[arcs.target] != arcs.label).any():
            raise ValueError("a state of the graph is entered by several units: build the graph "
                             "with topology standard")  # fmt: skip
        probability = torch.from_numpy(np.exp(arcs.score.astype(np.float64)))
        source, target = (torch.from_numpy(x.astype(np.int64)) for x in (arcs.source, arcs.target))
        onward = _matrix(target, source, probability, arcs.states)
        back = _matrix(source, target, probability, arcs.states)
        final = torch.from_numpy(np.exp(arcs.final.astype(np.float64)))
        return cls(onward, back, torch.from_numpy(label), final)

    def to(self, device: torch.device) -> "GraphMatrices":
        """Copy to another device."""
        return GraphMatrices(*(x.to(device) for x in vars(self).values()))


def _matrix(row: Tensor, column: Tensor, value: Tensor, size: int) -> Tensor:
    """Build a sparse matrix (S, S); entries of the same place are summed."""
    place = torch.stack((row, column))
    found = torch.sparse_coo_tensor(place, value, (size, size), check_invariants=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CSR support is in beta
        return found.coalesce().to_sparse_csr()


def graph_total(log_probs: Tensor, lengths: Tensor, graph: GraphMatrices) -> Tensor:
    """Return the log of the sum over all paths, for each item.

    Args:
        log_probs: (B, T, V).
        lengths: (B,) int64.
        graph: on the same device.

    Returns:
        (B,) float64; -inf, without a gradient, where no path has so many frames.
    """
    return _Total.apply(log_probs, lengths, graph)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, log_probs, lengths, graph):
        top = log_probs.detach().double().amax(-1)  # (B, T)
        read = (log_probs.detach().double() - top[..., None]).exp().transpose(0, 1)  # (T, B, V)
        items, frames = log_probs.shape[:2]
        state = top.new_zeros(len(graph.label), items)  # (S, B)
        state[0] = 1.0
        passed, norms = [state], top.new_zeros(frames, items)
        for t in range(frames):
            onward = (graph.onward @ state) * read[t].T[graph.label]
            going = t < lengths
            norm = onward.sum(0)
            norms[t] = torch.where(going, norm, 1.0)
            onward = onward / norm.clamp(min=_TINY)
            state = torch.where(going, onward, state)
            passed.append(state)
        ended = graph.final @ state  # (B,)
        real = torch.arange(frames, device=lengths.device) < lengths[:, None]
        ctx.save_for_backward(lengths, read, norms, *passed)
        ctx.graph, ctx.ended, ctx.dtype = graph, ended, log_probs.dtype
        return ended.log() + (norms.log().T + top).masked_fill(~real, 0.0).sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        lengths, read, norms, *passed = ctx.saved_tensors
        graph = ctx.graph
        frames, items, units = read.shape
        fits = (ctx.ended > 0) & (norms > 0).all(0)
        after = graph.final[:, None] / ctx.ended.clamp(min=_TINY)  # (S, B)
        after = after.masked_fill(~fits, 0.0)
        share = read.new_zeros(frames, items, units)
        for t in range(frames - 1, -1, -1):
            going = t < lengths
            here = (passed[t + 1] * after).masked_fill(~going, 0.0)
            share[t].index_add_(1, graph.label, here.T)
            before = graph.back @ (after * read[t].T[graph.label])
            after = torch.where(going, before / norms[t].clamp(min=_TINY), after)
        share = share.transpose(0, 1) * grad.masked_fill(~fits, 0.0)[:, None, None]
        return share.to(ctx.dtype), None, None


_TINY = torch.finfo(torch.float64).tiny
