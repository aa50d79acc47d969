"""Blank-regularised CTC: by hand, against torch without constraints, and what it does to blanks."""

import math

import pytest
import torch
from torch.nn.functional import ctc_loss as torch_ctc_loss

from speechattn.config import build
from speechattn.errors import ConfigError
from speechattn.losses import BlankRegularisedCTC, JointLoss, blank_regularised_ctc_loss
from speechattn.losses.joint import ctc_loss


def inputs():
    torch.manual_seed(0)
    logits = torch.randn(5, 30, 7, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([30, 25, 12, 20, 5])
    tokens = torch.tensor([[1, 1, 2, 3, 3], [4, 2, 4, 0, 0], [0] * 5, [5, 5, 5, 5, 5], [1] * 5])
    return logits, lengths, tokens, torch.tensor([5, 3, 0, 5, 5])


@pytest.mark.parametrize("options", [{}, {"max_repeats": 30}], ids=["soft", "hard"])
def test_without_constraints_it_is_torch(options):
    logits, lengths, tokens, counts = inputs()
    log_probs = logits.log_softmax(-1)
    for zero in (False, True):
        ours = blank_regularised_ctc_loss(
            log_probs, lengths, tokens, counts, zero_infinity=zero, **options
        )
        theirs = torch_ctc_loss(
            log_probs.transpose(0, 1),
            tokens,
            lengths,
            counts,
            reduction="none",
            zero_infinity=zero,
        )
        assert ours[4] == (0.0 if zero else math.inf)
        torch.testing.assert_close(ours, theirs)
    (g,) = torch.autograd.grad(ours.sum(), logits, retain_graph=True)
    (h,) = torch.autograd.grad(theirs.sum(), logits)
    torch.testing.assert_close(g, h)
    module = BlankRegularisedCTC(**options)
    expected = ctc_loss(log_probs.float(), lengths, tokens, counts)
    torch.testing.assert_close(module(log_probs.float(), lengths, tokens, counts), expected)


@pytest.mark.parametrize(("penalty", "most"), [(0.5, None), (0.0, 0), (0.0, 2), (0.5, 2)], ids=str)
def test_one_token_by_hand(penalty, most):
    # All is equally likely: a run of d frames has 12 - d + 1 places.
    log_probs = torch.full((1, 12, 3), -math.log(3), dtype=torch.float64, requires_grad=True)
    one = torch.tensor([1])
    options = {"repeat_penalty": penalty, "max_repeats": most}
    loss = blank_regularised_ctc_loss(
        log_probs, torch.tensor([12]), torch.tensor([[2]]), one, **options
    )
    runs = range(1, 13 if most is None else most + 2)
    total = sum((12 - d + 1) * math.exp(-penalty * (d - 1)) for d in runs)
    assert loss.item() == pytest.approx(12 * math.log(3) - math.log(total))
    (g,) = torch.autograd.grad(loss.sum(), log_probs)
    frames = sum(d * (12 - d + 1) * math.exp(-penalty * (d - 1)) for d in runs) / total
    assert -g[0, :, 2].sum().item() == pytest.approx(frames)


def learned(loss):
    """Blank's share of frames after learning one text in 20 frames from nothing."""
    torch.manual_seed(0)
    logits = (0.1 * torch.randn(1, 20, 5)).requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.2)
    lengths, tokens, counts = torch.tensor([20]), torch.tensor([[1, 2, 2, 3]]), torch.tensor([4])
    for _ in range(50):
        optimizer.zero_grad()
        value = loss(logits.log_softmax(-1), lengths, tokens, counts)
        value.backward()
        optimizer.step()
    return (logits.softmax(-1)[..., 0] > 0.5).float().mean().item()


def test_constraints_make_blanks():
    plain = learned(BlankRegularisedCTC())
    bound = 1 - 4 / 20
    assert plain < bound - 0.1
    assert learned(BlankRegularisedCTC(repeat_penalty=3.0)) > plain + 0.1
    assert learned(BlankRegularisedCTC(max_repeats=0)) == pytest.approx(bound, abs=0.051)


def test_joint_loss_from_a_configuration():
    loss = build(
        JointLoss,
        {
            "ctc_weight": 1.0,
            "ctc": {
                "class_path": "speechattn.losses.BlankRegularisedCTC",
                "init_args": {"repeat_penalty": 0.5, "max_repeats": 3, "modified": True},
            },
            "transducer": {
                "class_path": "speechattn.losses.PrunedTransducerLoss",
                "init_args": {"width": 4},
            },
        },
        "loss",
    )
    found = loss.ctc_criterion
    assert (found.repeat_penalty, found.max_repeats, found.modified) == (0.5, 3, True)
    assert (loss.transducer.width, loss.transducer_weight) == (4, 0.7)


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="repeat_penalty"):
        BlankRegularisedCTC(-0.1)
    with pytest.raises(ConfigError, match="max_repeats"):
        BlankRegularisedCTC(max_repeats=-1)
    with pytest.raises(ConfigError, match="time_slack"):
        JointLoss(time_slack=0.2, ctc=BlankRegularisedCTC(0.1))
