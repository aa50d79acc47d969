"""Sums over the paths of a graph against every path, and against autograd in logarithms."""

import numpy as np
import pytest
import torch

from speechattn.decoding.fst.arcs import Arcs
from speechattn.decoding.fst.ctc_topology import with_ctc
from speechattn.kernels.lattice.graph_total import GraphMatrices, graph_total

UNITS = 4
LENGTHS = torch.tensor([5, 1, 0, 3])


def acceptor(seed: int = 0) -> Arcs:
    """Three states, of which the first and the last end, with two arcs for the same unit."""
    source, target, label = np.array(
        [(0, 1, 1), (0, 2, 2), (1, 1, 1), (1, 2, 3), (1, 2, 2), (2, 0, 1), (2, 0, 1), (2, 2, 3)]
    ).T
    score = np.random.default_rng(seed).standard_normal(len(label)) - 1
    return Arcs.of((source, target, label, label, score), np.array([-0.3, -np.inf, -0.7]))


def frames(seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    torch.manual_seed(seed)
    x = scale * torch.randn(len(LENGTHS), 5, UNITS, dtype=torch.double)
    return x.log_softmax(-1).requires_grad_()


def reference(log_probs: torch.Tensor, lengths: torch.Tensor, arcs: Arcs) -> torch.Tensor:
    """Arc by arc, in logarithms."""
    totals = []
    for row, length in zip(log_probs, lengths.tolist(), strict=True):
        state = [torch.tensor(0.0 if s == 0 else -np.inf).double() for s in range(arcs.states)]
        for t in range(length):
            onward = [[torch.tensor(-np.inf).double()] for _ in range(arcs.states)]
            for s, e, u, score in zip(
                arcs.source, arcs.target, arcs.label, arcs.score, strict=True
            ):
                onward[e].append(state[s] + float(score) + row[t, u])
            # One of them alone: logsumexp of nothing but -inf has no gradient.
            state = [
                torch.logsumexp(torch.stack([x for x in terms if x > -np.inf] or terms[:1]), 0)
                for terms in onward
            ]
        ends = [x + float(f) for x, f in zip(state, arcs.final, strict=True) if np.isfinite(f)]
        totals.append(torch.logsumexp(torch.stack([x for x in ends if x > -np.inf] or ends[:1]), 0))
    return torch.stack(totals)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_values_and_gradients(scale):
    arcs = with_ctc(acceptor())
    x = frames(scale=scale)
    weight = torch.tensor([1.0, -0.5, 2.0, 3.0]).double()
    y = graph_total(x, LENGTHS, GraphMatrices.from_arcs(arcs))
    expected = reference(x, LENGTHS, arcs)
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-6)
    (found,) = torch.autograd.grad((y * weight).sum(), x)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), x)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert found[3, 3:].abs().sum() == 0  # padding


def test_what_is_padded_changes_nothing():
    graph = GraphMatrices.from_arcs(with_ctc(acceptor()))
    x = frames()
    padded = torch.cat([x, torch.full((4, 3, UNITS), 50.0)], 1)
    alone = [graph_total(row[None, :n], LENGTHS[b : b + 1], graph)
             for b, (row, n) in enumerate(zip(x, LENGTHS.tolist(), strict=True))]  # fmt: skip
    torch.testing.assert_close(graph_total(padded, LENGTHS, graph), torch.cat(alone))


def test_nothing_ends():
    """A path needs two frames; then one item has none, and no gradient."""
    source, target, label = np.array([(0, 1, 1), (1, 2, 2)]).T
    final = np.array([-np.inf, -np.inf, 0.0])
    arcs = with_ctc(Arcs.of((source, target, label, label, np.zeros(2)), final))
    x = frames()
    y = graph_total(x, LENGTHS, GraphMatrices.from_arcs(arcs))
    assert y[1] == -np.inf and y[2] == -np.inf and y[[0, 3]].isfinite().all()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.isfinite().all() and gradient[1:3].abs().sum() == 0
    assert gradient[0].sum() == pytest.approx(5.0)  # a unit a frame


def test_float32_and_long():
    arcs = with_ctc(acceptor())
    torch.manual_seed(0)
    x = (8 * torch.randn(2, 1500, UNITS)).log_softmax(-1).requires_grad_()
    lengths = torch.tensor([1500, 700])
    y = graph_total(x, lengths, GraphMatrices.from_arcs(arcs))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all() and gradient.dtype == torch.float32
    assert gradient.sum((1, 2)).tolist() == pytest.approx([1500, 700], rel=1e-4)


def test_states_of_several_units_are_refused():
    with pytest.raises(ValueError, match="topology standard"):
        GraphMatrices.from_arcs(with_ctc(acceptor(), "modified"))
