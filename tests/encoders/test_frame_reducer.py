"""The frame reducer, against a loop over items and frames."""

import math

import pytest
import torch

from speechattn.encoders import FrameReducer
from speechattn.errors import ConfigError

LENGTHS = torch.tensor([12, 7, 0, 9])
COUNTS = torch.tensor([3, 7, 0, 5])


def inputs(scale=3.0):
    torch.manual_seed(0)
    hidden = torch.randn(4, 12, 5)
    return hidden, LENGTHS, (scale * torch.randn(4, 12, 6)).log_softmax(-1)


def by_hand(log_probs, lengths, threshold, counts=None):
    kept = []
    for b, n in enumerate(lengths.tolist()):
        blank = log_probs[b, :n, 0].exp().tolist()
        chosen = {t for t in range(n) if blank[t] <= threshold}
        if counts is not None:
            chosen |= set(sorted(range(n), key=lambda t: blank[t])[: counts[b]])
        kept.append(sorted(chosen))
    return kept


@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.8])
@pytest.mark.parametrize("known", [False, True])
def test_against_a_loop(threshold, known):
    hidden, lengths, log_probs = inputs()
    counts = COUNTS if known else None
    reduced = FrameReducer(threshold)(hidden, lengths, log_probs, counts)
    expected = by_hand(log_probs, lengths, threshold, counts)
    assert reduced.lengths.tolist() == [len(frames) for frames in expected]
    assert reduced.hidden.shape[1] == max(map(len, expected))
    for b, frames in enumerate(expected):
        assert reduced.index[b, : len(frames)].tolist() == frames
        assert torch.equal(reduced.hidden[b, : len(frames)], hidden[b, frames])
        assert (reduced.hidden[b, len(frames) :] == 0).all()
    if known:
        assert (reduced.lengths >= COUNTS).all()
    assert 0 < reduced.lengths.sum() < lengths.sum()


def test_the_rule_is_what_keeps_them():
    """With a CTC that is sure of blank everywhere nothing else would."""
    hidden, lengths, log_probs = inputs()
    log_probs[..., 0] = math.log(0.999)
    assert FrameReducer()(hidden, lengths, log_probs).lengths.tolist() == [0, 0, 0, 0]
    found = FrameReducer()(hidden, lengths, log_probs, torch.tensor([3, 9, 2, 5]))
    assert found.lengths.tolist() == [3, 7, 0, 5]  # never more than there are


def test_padding_does_not_count():
    hidden, lengths, log_probs = inputs()
    reducer = FrameReducer(0.3)
    expected = reducer(hidden, lengths, log_probs, COUNTS)
    for b, n in enumerate(LENGTHS.tolist()):
        hidden[b, n:], log_probs[b, n:] = math.nan, math.nan
    found = reducer(hidden, lengths, log_probs, COUNTS)
    assert torch.equal(found.lengths, expected.lengths)
    assert torch.equal(found.hidden, expected.hidden)
    for b, n in enumerate(LENGTHS.tolist()):
        alone = reducer(
            hidden[b : b + 1, :n], LENGTHS[b : b + 1], log_probs[b : b + 1, :n], COUNTS[b : b + 1]
        )
        k = int(alone.lengths)
        assert k == found.lengths[b]
        assert torch.equal(alone.hidden[0, :k], found.hidden[b, :k])


def test_gradients_go_through_what_is_kept():
    hidden, lengths, log_probs = inputs()
    hidden.requires_grad_()
    log_probs.requires_grad_()
    reduced = FrameReducer(0.3)(hidden, lengths, log_probs)
    reduced.hidden.sum().backward()
    for b, frames in enumerate(by_hand(log_probs, lengths, 0.3)):
        expected = torch.zeros(12, 5)
        expected[frames] = 1.0
        assert torch.equal(hidden.grad[b], expected)
    assert log_probs.grad is None


def test_warmup_and_counts():
    given = inputs()
    reducer = FrameReducer(0.3, warmup=2)
    full, some = LENGTHS.sum(), sum(map(len, by_hand(given[2], LENGTHS, 0.3)))
    assert [int(reducer(*given).lengths.sum()) for _ in range(3)] == [full, full, some]
    other = FrameReducer(0.3, warmup=2)
    other.load_state_dict(reducer.state_dict())
    other.eval()
    assert other.share() == 1.0
    other(*given, COUNTS)  # a loss; only searches count
    assert other.share() == 1.0
    assert int(other(*given).lengths.sum()) == some
    assert other.share() == pytest.approx(some / int(full))
    assert int(other.batches) == 3
    cold = FrameReducer(0.3, warmup=2).eval()
    assert int(cold(*given).lengths.sum()) == full


def test_a_threshold_of_one_keeps_all():
    hidden, lengths, log_probs = inputs()
    log_probs[..., 0] = 1e-7  # as rounding may have it
    assert torch.equal(FrameReducer(1.0)(hidden, lengths, log_probs).lengths, lengths)


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="threshold"):
        FrameReducer(0.0)
    with pytest.raises(ConfigError, match="warmup"):
        FrameReducer(warmup=-1)
