"""CTC near the times of words, against the sum over all paths."""

import itertools

import pytest
import torch

from speechattn.losses.joint import ctc_loss
from speechattn.losses.timed_ctc import timed_ctc_loss

TOKENS = torch.tensor([[1, 2, 0], [3, 0, 0], [1, 2, 1]])
TOKEN_LENGTHS, LENGTHS = torch.tensor([2, 1, 3]), torch.tensor([6, 4, 5])
TIMES = torch.tensor(
    [[[0, 1], [2, 3.5], [0, 9]], [[1, 2], [0, 0], [0, 0]], [[0, 1], [1, 3], [3, 4.0]]]
)


def by_enumeration(log_probs, slack):
    """Over all paths of each item that write its tokens, each near one of its times."""
    found = []
    for b, frames in enumerate(LENGTHS.tolist()):
        tokens = TOKENS[b, : TOKEN_LENGTHS[b]].tolist()

        def near(t, k, b=b, tokens=tokens):
            return any(
                k == token and TIMES[b, u, 0] - slack <= t + 0.5 <= TIMES[b, u, 1] + slack
                for u, token in enumerate(tokens)
            )

        total = []
        for path in itertools.product(range(4), repeat=frames):
            said = [k for i, k in enumerate(path) if k and (i == 0 or path[i - 1] != k)]
            if said == tokens and all(k == 0 or near(t, k) for t, k in enumerate(path)):
                total.append(sum(log_probs[b, t, k] for t, k in enumerate(path)))
        found.append(-torch.logsumexp(torch.stack(total), 0))
    return torch.stack(found).mean()


@pytest.mark.parametrize("slack", [0.0, 0.6, 1.5])
def test_loss_and_gradient(slack):
    torch.manual_seed(0)
    logits = torch.randn(3, 7, 4, dtype=torch.float64, requires_grad=True)
    ours = timed_ctc_loss(logits.log_softmax(-1), LENGTHS, TOKENS, TOKEN_LENGTHS, TIMES, slack)
    expected = by_enumeration(logits.log_softmax(-1), slack)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    (g,) = torch.autograd.grad(ours, logits)
    (h,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(g, h, atol=1e-5, rtol=0)


def test_without_times_it_is_ctc():
    torch.manual_seed(1)
    log_probs = torch.randn(3, 7, 4).log_softmax(-1)
    times = torch.tensor([-torch.inf, torch.inf]).expand(3, 3, 2)
    ours = timed_ctc_loss(log_probs, LENGTHS, TOKENS, TOKEN_LENGTHS, times, 0.2)
    torch.testing.assert_close(ours, ctc_loss(log_probs, LENGTHS, TOKENS, TOKEN_LENGTHS))
    assert ours < timed_ctc_loss(log_probs, LENGTHS, TOKENS, TOKEN_LENGTHS, TIMES, 0.2)


def test_what_has_no_path_counts_nothing():
    """Too short for its text, or no frame near a token."""
    logits = torch.randn(2, 4, 4, requires_grad=True)
    lengths, tokens = torch.tensor([1, 4]), torch.tensor([[1, 2], [1, 0]])
    times = torch.tensor([[[0, 1], [1, 2]], [[0, 1], [0, 0]]]).float()
    both = timed_ctc_loss(logits.log_softmax(-1), lengths, tokens, torch.tensor([2, 1]), times, 0.5)
    one = (lengths[1:], tokens[1:, :1], torch.tensor([1]))
    alone = timed_ctc_loss(logits[1:].log_softmax(-1), *one, times[1:, :1], 0.5)
    assert both.item() == pytest.approx(alone.item() / 2, rel=1e-5)
    (g,) = torch.autograd.grad(both, logits)
    assert torch.isfinite(g).all() and not g[0].any()
    far = timed_ctc_loss(logits[1:].log_softmax(-1), *one, times[1:, :1] + 100, 0.5)
    (g,) = torch.autograd.grad(far, logits)
    assert far.item() == 0.0 and not g.any()
