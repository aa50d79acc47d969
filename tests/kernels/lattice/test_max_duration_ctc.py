"""CTC with a cap on the frames of a token, against all alignments one by one, and against CTC."""

import itertools
import math

import pytest
import torch

from speechattn.kernels.lattice.ctc import ctc
from speechattn.kernels.lattice.max_duration_ctc import max_duration_ctc

# Equal neighbours, one alone, none, too many for the frames, and of equal length.
LENGTHS = torch.tensor([6, 5, 4, 2, 3])
TOKENS = torch.tensor([[1, 1, 0], [2, 0, 0], [0, 0, 0], [1, 2, 1], [2, 1, 2]])
COUNTS = torch.tensor([2, 1, 0, 3, 3])


def inputs(seed=0, frames=6, units=3):
    torch.manual_seed(seed)
    return torch.randn(5, frames, units, dtype=torch.float64, requires_grad=True)


def alignments(frames: int, text: list[int], modified: bool):
    """Each path of units that spells a text: its units, and how long each token lasted.

    Of the states rather than of the units: where equal tokens may follow each other, one path of
    units is several alignments.
    """
    states = [0]
    for token in text:
        states += [token, 0]
    for path in itertools.product(range(len(states)), repeat=frames):
        if not path or path[0] > 1 or path[-1] < len(states) - 2:
            continue
        for s, then in itertools.pairwise(path):
            skips = then == s + 2 and states[then] and (modified or states[then] != states[s])
            if then not in (s, s + 1) and not skips:
                break
        else:
            yield (
                [states[s] for s in path],
                [path.count(s) for s in range(1, len(states), 2)],
            )


def by_hand(log_probs, lengths, tokens, counts, most, repeat_score=0.0, modified=False):
    losses = []
    for b, n in enumerate(lengths.tolist()):
        text = tokens[b, : counts[b]].tolist()
        scores = [
            sum(log_probs[b, t, unit] for t, unit in enumerate(units))
            + repeat_score * sum(x - 1 for x in lasted)
            for units, lasted in alignments(n, text, modified)
            if all(x - 1 <= most for x in lasted)
        ]
        none = log_probs.new_full((), math.inf) + 0 * log_probs[b].sum()
        losses.append(-torch.stack(scores).logsumexp(0) if scores else none)
    return torch.stack(losses)


@pytest.mark.parametrize("modified", [False, True], ids=["standard", "modified"])
@pytest.mark.parametrize("repeat_score", [0.0, -0.7])
@pytest.mark.parametrize("most", [0, 1, 2, 9])
def test_against_all_alignments(most, repeat_score, modified):
    logits = inputs()
    log_probs = logits.log_softmax(-1)
    texts = LENGTHS, TOKENS, COUNTS
    ours = max_duration_ctc(
        log_probs, *texts, max_repeats=most, repeat_score=repeat_score, modified=modified
    )
    theirs = by_hand(log_probs, *texts, most, repeat_score, modified)
    torch.testing.assert_close(ours, theirs)
    finite = theirs.isfinite()
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)[finite]
    (g,) = torch.autograd.grad((ours[finite] * weights).sum(), logits, retain_graph=True)
    (h,) = torch.autograd.grad((theirs[finite] * weights).sum(), logits)
    torch.testing.assert_close(g, h)
    assert finite.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("modified", [False, True], ids=["standard", "modified"])
def test_a_cap_that_nothing_reaches_is_ctc(modified):
    torch.manual_seed(0)
    logits = torch.randn(4, 30, 7, requires_grad=True)
    lengths, counts = torch.tensor([30, 12, 25, 0]), torch.tensor([8, 12, 0, 0])
    tokens = torch.randint(1, 7, (4, 12))
    log_probs = logits.log_softmax(-1)
    ours = max_duration_ctc(
        log_probs, lengths, tokens, counts, max_repeats=100, repeat_score=-0.3, modified=modified
    )
    theirs = ctc(log_probs, lengths, tokens, counts, repeat_score=-0.3, modified=modified)
    torch.testing.assert_close(ours, theirs)
    finite = theirs.isfinite()
    (g,) = torch.autograd.grad(ours[finite].sum(), logits, retain_graph=True)
    (h,) = torch.autograd.grad(theirs[finite].sum(), logits)
    torch.testing.assert_close(g, h, atol=1e-6, rtol=1e-4)
    less = max_duration_ctc(
        log_probs, lengths, tokens, counts, max_repeats=1, repeat_score=-0.3, modified=modified
    )
    assert (less[:1] > ours[:1]).all()


def test_padding_and_impossible_items():
    logits = inputs()
    log_probs = logits.log_softmax(-1).detach().clone()
    expected = max_duration_ctc(log_probs, LENGTHS, TOKENS, COUNTS, max_repeats=1)
    for row, n in zip(log_probs, LENGTHS.tolist(), strict=True):
        row[n:] = math.nan
    tokens = TOKENS.clone()
    tokens[2] = -1
    log_probs.requires_grad_()
    found = max_duration_ctc(log_probs, LENGTHS, tokens, COUNTS, max_repeats=1)
    torch.testing.assert_close(found, expected)
    (g,) = torch.autograd.grad(found.sum(), log_probs)
    assert g.isfinite().all()
    assert (g[3] == 0).all()
    for row, n in zip(g, LENGTHS.tolist(), strict=True):
        assert (row[n:] == 0).all()


def test_half_precision():
    log_probs = inputs().detach().log_softmax(-1)
    expected = max_duration_ctc(log_probs, LENGTHS, TOKENS, COUNTS, max_repeats=1)
    half = log_probs.bfloat16().requires_grad_()
    found = max_duration_ctc(half, LENGTHS, TOKENS, COUNTS, max_repeats=1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)
    found[:3].sum().backward()
    assert half.grad.dtype == torch.bfloat16


def test_what_cannot_be():
    with pytest.raises(ValueError, match="max_repeats"):
        max_duration_ctc(inputs(), LENGTHS, TOKENS, COUNTS, max_repeats=-1)
