"""Delay-penalised CTC against what k2 made of it, and against torch without a penalty."""

import importlib.util
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import ctc_loss as torch_ctc_loss

from speechattn.config import build
from speechattn.errors import ConfigError
from speechattn.losses import (
    DelayPenalisedCTC,
    JointLoss,
    delay_penalised_ctc,
    delay_penalised_ctc_loss,
)
from speechattn.losses.joint import ctc_loss
from tests.k2.ctc_cases import CASES, Case, case

GOLDEN = Path(__file__).with_name("golden_delay_ctc.json")


def native(c: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Our losses (B,), and the gradient (B, T, V) of those that are finite."""
    logits = torch.from_numpy(c.logits).requires_grad_()
    token_lengths = torch.tensor([len(text) for text in c.texts])
    tokens = torch.zeros(len(c.texts), max(token_lengths), dtype=torch.int64)
    for row, text in zip(tokens, c.texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    losses = delay_penalised_ctc_loss(
        logits.log_softmax(-1),
        torch.from_numpy(c.lengths),
        tokens,
        token_lengths,
        c.delay_penalty,
        modified=c.modified,
    )
    (gradient,) = torch.autograd.grad(losses[losses.isfinite()].sum(), logits)
    return losses.detach(), gradient


def test_equals_k2():
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == CASES
    penalised = 0
    for seed, expected in enumerate(golden):
        c = case(seed)
        losses, gradient = native(c)
        gradient = gradient.double().numpy()
        norms = np.sqrt((gradient**2).sum((1, 2)))
        sums = (gradient * c.weights).sum((1, 2))
        for b, loss in enumerate(expected["losses"]):
            if loss is None:
                assert losses[b] == math.inf, seed
                assert norms[b] == 0, seed
                continue
            assert losses[b].item() == pytest.approx(loss, rel=1e-4), (seed, b)
            norm = expected["norms"][b]
            assert norms[b] == pytest.approx(norm, rel=1e-4), (seed, b)
            assert sums[b] == pytest.approx(expected["sums"][b], abs=3e-4 * norm), (seed, b)
            penalised += c.delay_penalty > 0
    assert penalised > 500


def test_the_penalty_is_seen_in_golden_values():
    # Else agreeing with them would say nothing of it.
    c = case(4)
    assert c.delay_penalty == 0.1
    losses, _ = native(c)
    c.delay_penalty = 0.0
    plain, _ = native(c)
    finite = plain.isfinite() & torch.tensor([len(text) > 0 for text in c.texts])
    assert ((losses - plain)[finite].abs() > 1e-2 * plain[finite]).any()


def inputs():
    torch.manual_seed(0)
    logits = torch.randn(5, 30, 7, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([30, 25, 12, 20, 5])
    tokens = torch.tensor([[1, 1, 2, 3, 3], [4, 2, 4, 0, 0], [0] * 5, [5, 5, 5, 5, 5], [1] * 5])
    return logits, lengths, tokens, torch.tensor([5, 3, 0, 5, 5])


def test_without_a_penalty_it_is_torch():
    logits, lengths, tokens, token_lengths = inputs()
    log_probs = logits.log_softmax(-1)
    for zero in (False, True):
        ours = delay_penalised_ctc_loss(
            log_probs, lengths, tokens, token_lengths, zero_infinity=zero
        )
        theirs = torch_ctc_loss(
            log_probs.transpose(0, 1),
            tokens,
            lengths,
            token_lengths,
            reduction="none",
            zero_infinity=zero,
        )
        assert ours[4] == (0.0 if zero else math.inf)
        torch.testing.assert_close(ours, theirs)
    (g,) = torch.autograd.grad(ours.sum(), logits, retain_graph=True)
    (h,) = torch.autograd.grad(theirs.sum(), logits)
    torch.testing.assert_close(g, h)


def test_the_module_is_what_the_joint_loss_has():
    logits, lengths, tokens, token_lengths = inputs()
    log_probs = logits.float().log_softmax(-1)
    expected = ctc_loss(log_probs, lengths, tokens, token_lengths)
    ours = DelayPenalisedCTC(0.0)(log_probs, lengths, tokens, token_lengths)
    torch.testing.assert_close(ours, expected)


def test_a_penalty_moves_tokens_forward():
    # All is equally likely, so that only the penalty says when; each frame later is exp(-0.5).
    log_probs = torch.full((1, 12, 3), -math.log(3), dtype=torch.float64, requires_grad=True)
    n, text, one = torch.tensor([12]), torch.tensor([[2]]), torch.tensor([1])
    weights = [
        (first, frame, math.exp(-0.5 * (first - 6)))
        for first in range(12)
        for last in range(first, 12)
        for frame in range(first, last + 1)
    ]
    alignments = sum(math.exp(-0.5 * (first - 6)) * (12 - first) for first in range(12))
    loss = delay_penalised_ctc_loss(log_probs, n, text, one, 0.5)
    assert loss.item() == pytest.approx(12 * math.log(3) - math.log(alignments))
    (g,) = torch.autograd.grad(loss.sum(), log_probs)
    expected = [sum(w for _, frame, w in weights if frame == t) / alignments for t in range(12)]
    assert (-g[0, :, 2]).tolist() == pytest.approx(expected)


@dataclass
class Words:
    tokens: torch.Tensor
    token_lengths: torch.Tensor
    token_times: None = None


def test_joint_loss_takes_it():
    logits, lengths, tokens, token_lengths = inputs()
    log_probs, words = logits.float().log_softmax(-1), Words(tokens, token_lengths)
    model = torch.nn.Module()
    plain = JointLoss().ctc(model, log_probs, lengths, words)
    penalised = JointLoss(ctc=DelayPenalisedCTC(0.1)).ctc(model, log_probs, lengths, words)
    expected = delay_penalised_ctc_loss(
        log_probs, lengths, tokens, token_lengths, 0.1, zero_infinity=True
    )
    torch.testing.assert_close(penalised, expected.mean())
    assert (penalised - plain).abs() > 1e-3


def test_joint_loss_from_a_configuration():
    loss = build(
        JointLoss,
        {
            "ctc_weight": 1.0,
            "ctc": {
                "class_path": "speechattn.losses.DelayPenalisedCTC",
                "init_args": {"delay_penalty": 0.02, "modified": True},
            },
        },
        "loss",
    )
    assert (loss.ctc_criterion.delay_penalty, loss.ctc_criterion.modified) == (0.02, True)


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="delay_penalty"):
        DelayPenalisedCTC(-0.1)
    with pytest.raises(ConfigError, match="time_slack"):
        JointLoss(time_slack=0.2, ctc=DelayPenalisedCTC())


def test_backends():
    with pytest.raises(ConfigError, match="native or k2"):
        DelayPenalisedCTC(backend="fast")
    if importlib.util.find_spec("k2") is None:
        with pytest.raises(ConfigError, match="wheel for your torch"):
            DelayPenalisedCTC(backend="k2")


def test_k2_as_a_backend(monkeypatch):
    """Items that do not fit are left out, as by the native one (k2 itself: tests/k2)."""
    monkeypatch.setattr(delay_penalised_ctc, "library", lambda: None)
    monkeypatch.setattr(delay_penalised_ctc, "ctc_losses", delay_penalised_ctc_loss)
    c = case(2)
    log_probs = torch.from_numpy(c.logits).log_softmax(-1).requires_grad_()
    lengths = torch.tensor([len(text) for text in c.texts])
    tokens = torch.tensor([text + [0] * (int(lengths.max()) - len(text)) for text in c.texts])
    given = log_probs, torch.from_numpy(c.lengths), tokens, lengths
    native_, other = (DelayPenalisedCTC(0.01, backend=b)(*given) for b in ("native", "k2"))
    assert torch.equal(native_, other)
    assert torch.isinf(delay_penalised_ctc_loss(*given)).any()
    (gradient,) = torch.autograd.grad(other, log_probs)
    assert gradient.isfinite().all()
