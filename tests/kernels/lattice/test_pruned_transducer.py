"""The pruned transducer's loss against the full one, and what its windows have to be."""

import itertools
import math

import pytest
import torch

from speechattn.kernels.lattice.pruned_transducer import (
    prune,
    prune_ranges,
    pruned_transducer,
    simple_transducer,
)
from speechattn.kernels.lattice.transducer import transducer
from speechattn.kernels.lattice.transducer_lattice import arcs, reference
from tests.k2.transducer_cases import case
from tests.kernels.lattice.test_transducer import TOPOLOGIES
from tests.kernels.lattice.test_transducer_lattice import lattice_inputs


def losses_of(am, lm, full, kept, ranges, lengths, tokens, counts, topology):
    options = {"delay_penalty": 0.1, "topology": topology}
    return (
        transducer(full, lengths, tokens, counts, **options),
        simple_transducer(am, lm, tokens, lengths, counts, lm_only_scale=0.25, **options)[0],
        pruned_transducer(kept, tokens, ranges, lengths, counts, **options),
    )


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_items_alone(topology):
    c = case(11)
    am, lm, full, kept = (torch.from_numpy(x) for x in (c.am, c.lm, c.full, c.kept))
    lengths, tokens, counts = (torch.from_numpy(x) for x in (c.lengths, c.tokens, c.token_lengths))
    width = kept.shape[2]
    _, px, py = simple_transducer(am, lm, tokens, lengths, counts, topology=topology)
    ranges = prune_ranges(px, py, lengths, counts, width)
    for b, (n, m) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
        am[b, n:], lm[b, m + 1 :], tokens[b, m:] = 30.0, -30.0, -1
        full[b, n:], full[b, :, m + 1 :], kept[b, n:] = math.nan, math.nan, math.nan
    inputs = [x.requires_grad_() for x in (am, lm, full, kept)]
    whole = losses_of(*inputs, ranges, lengths, tokens, counts, topology)
    gradients = torch.autograd.grad(sum(x[x.isfinite()].sum() for x in whole), inputs)
    compared = 0
    for b, (n, m) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
        if m < width - 1:  # its windows are wider than its text
            continue
        alone = losses_of(
            am[b : b + 1, :n],
            lm[b : b + 1, : m + 1],
            full[b : b + 1, :n, : m + 1],
            kept[b : b + 1, :n],
            ranges[b : b + 1, :n],
            lengths[b : b + 1],
            tokens[b : b + 1, :m],
            counts[b : b + 1],
            topology,
        )
        compared += 1
        for x, y in zip(whole, alone, strict=True):
            torch.testing.assert_close(x[b : b + 1], y)
        again = torch.autograd.grad(sum(x[x.isfinite()].sum() for x in alone), inputs)
        for g, h in zip(gradients, again, strict=True):
            torch.testing.assert_close(g[b], h[b])
    assert compared >= 2


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_sum_of_scores_is_the_simple_joiner(topology):
    c = case(4)
    am, lm = (torch.from_numpy(x).double().requires_grad_() for x in (c.am, c.lm))
    lengths, tokens, counts = (torch.from_numpy(x) for x in (c.lengths, c.tokens, c.token_lengths))
    simple, _, _ = simple_transducer(
        am, lm, tokens, lengths, counts, delay_penalty=0.1, topology=topology
    )
    whole = transducer(
        am[:, :, None] + lm[:, None], lengths, tokens, counts, delay_penalty=0.1, topology=topology
    )
    torch.testing.assert_close(simple, whole)
    possible = whole.isfinite()
    g = torch.autograd.grad(simple[possible].sum(), (am, lm))
    h = torch.autograd.grad(whole[possible].sum(), (am, lm))
    torch.testing.assert_close(g, h)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_all_columns_kept_is_the_full_loss(topology):
    c = case(13)
    full = torch.from_numpy(c.full).double()
    lengths, tokens, counts = (torch.from_numpy(x) for x in (c.lengths, c.tokens, c.token_lengths))
    _, px, py = simple_transducer(
        torch.from_numpy(c.am), torch.from_numpy(c.lm), tokens, lengths, counts, topology=topology
    )
    ranges = prune_ranges(px, py, lengths, counts, 99)
    assert (ranges == torch.arange(full.shape[2])).all()
    torch.testing.assert_close(
        pruned_transducer(
            full, tokens, ranges, lengths, counts, delay_penalty=0.1, topology=topology
        ),
        transducer(full, lengths, tokens, counts, delay_penalty=0.1, topology=topology),
    )


def test_what_is_left_out_is_never_gone_through():
    c = case(16)
    assert c.kept.shape[2] < c.full.shape[2]
    full = torch.from_numpy(c.full).double()
    lengths, tokens, counts = (torch.from_numpy(x) for x in (c.lengths, c.tokens, c.token_lengths))
    _, px, py = simple_transducer(
        torch.from_numpy(c.am), torch.from_numpy(c.lm), tokens, lengths, counts
    )
    ranges = prune_ranges(px, py, lengths, counts, c.kept.shape[2])
    kept = full.gather(2, ranges[..., None].expand(*ranges.shape, full.shape[3]))
    ours = pruned_transducer(kept, tokens, ranges, lengths, counts)
    # The full lattice with scores of nothing for columns that are left out.
    log_probs = full.log_softmax(-1)
    inside = torch.zeros(full.shape[:3], dtype=torch.bool).scatter(2, ranges, True)
    log_probs = log_probs.masked_fill(~inside[..., None], -math.inf)
    where = tokens[:, None, :, None].expand(-1, full.shape[1], -1, 1)
    token = log_probs[:, :, :-1].gather(3, where)[..., 0].mT
    expected = -reference(*arcs(token, log_probs[..., 0].mT, lengths), lengths, counts)
    torch.testing.assert_close(ours, expected)
    assert ours[0] > transducer(full, lengths, tokens, counts)[0] + 1e-3


@pytest.mark.parametrize("regular", [True, False])
@pytest.mark.parametrize("width", [2, 4])
def test_windows_leave_out_no_column(regular, width):
    px, py, _, _ = lattice_inputs(regular)
    generator = torch.Generator().manual_seed(1)
    lengths, counts = torch.tensor([6, 4, 5, 6]), torch.tensor([5, 1, 4, 0])
    for _ in range(20):
        grads = [torch.rand(x.shape, generator=generator) for x in (px, py)]
        ranges = prune_ranges(*grads, lengths, counts, width)
        assert (ranges.diff(dim=2) == 1).all()
        first = ranges[..., 0]
        assert (first[:, 0] == 0).all()
        steps = first.diff(dim=1)
        assert (steps >= 0).all()
        assert (steps < (width if regular else 2)).all()
        for b, (n, m) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
            reachable = (n - 1) * (width - 1 if regular else 1)
            assert ranges[b, n - 1, -1] >= min(m, reachable + width - 1)


def test_prune_takes_the_columns():
    generator = torch.Generator().manual_seed(1)
    am = torch.randn(2, 3, 4, generator=generator)
    lm = torch.randn(2, 6, 5, generator=generator, requires_grad=True)
    ranges = torch.tensor([[[0, 1], [1, 2], [4, 5]], [[0, 1], [0, 1], [3, 4]]])
    frames, columns = prune(am, lm, ranges)
    assert (frames.shape, columns.shape) == ((2, 3, 2, 4), (2, 3, 2, 5))
    for b, t, s in itertools.product(range(2), range(3), range(2)):
        assert (frames[b, t, s] == am[b, t]).all()
        assert (columns[b, t, s] == lm[b, ranges[b, t, s]]).all()
    (g,) = torch.autograd.grad(columns.sum(), lm)
    assert g[..., 0].tolist() == [[1, 2, 1, 0, 1, 1], [2, 2, 0, 1, 1, 0]]


def test_shapes_that_do_not_go_together():
    px, py, lengths, counts = lattice_inputs(True)
    with pytest.raises(ValueError, match="at least 2"):
        prune_ranges(px, py, lengths, counts, 1)
    tokens, ranges = torch.ones(4, 5).long(), torch.zeros(4, 6, 3).long()
    with pytest.raises(ValueError, match="ranges has to be of"):
        pruned_transducer(torch.zeros(4, 6, 2, 7), tokens, ranges, lengths, counts)
    am, lm = torch.zeros(4, 6, 7), torch.zeros(4, 6, 8)
    with pytest.raises(ValueError, match="lm has to be of"):
        simple_transducer(am, lm, tokens, lengths, counts)
    with pytest.raises(ValueError, match="tokens has to be of"):
        simple_transducer(am, lm[..., :7], tokens[:, :2], lengths, counts)
