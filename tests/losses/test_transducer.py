"""The transducer's losses as modules, on a head that is as simple as can be."""

import pytest
import torch
from torch import nn

from speechattn.config import build
from speechattn.errors import ConfigError
from speechattn.kernels.lattice.pruned_transducer import (
    prune_ranges,
    pruned_transducer,
    simple_transducer,
)
from speechattn.kernels.lattice.transducer import transducer
from speechattn.losses.transducer import FullTransducerLoss, PrunedTransducerLoss

WIDTH, UNITS = 6, 7


class Joiner(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder_projection = nn.Linear(WIDTH, 5)
        self.predictor_projection = nn.Linear(4, 5)
        self.output = nn.Linear(5, UNITS)

    def forward(self, frames, columns, project=True):
        if project:
            frames, columns = self.encoder_projection(frames), self.predictor_projection(columns)
        return self.output((frames + columns).tanh())


class Head(nn.Module):
    """What is asked of a `speechattn.decoders.transducer.Transducer`."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(UNITS, 4)
        self.joiner = Joiner()
        self.simple_am = nn.Linear(WIDTH, UNITS)
        self.simple_lm = nn.Linear(4, UNITS)

    def predict(self, tokens):
        return self.embedding(nn.functional.pad(tokens, (1, 0)))


def inputs(head=None):
    torch.manual_seed(0)
    head = (head or Head()).double()
    with torch.no_grad():
        for x in head.parameters():
            x.mul_(3)
    hidden = torch.randn(4, 12, WIDTH, dtype=torch.float64)
    tokens = torch.randint(1, UNITS, (4, 6))
    return head, hidden, torch.tensor([12, 9, 7, 5]), tokens, torch.tensor([6, 3, 0, 5])


def gradients(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)


def test_full_loss_is_torchaudios():
    functional = pytest.importorskip("torchaudio.functional")
    if not hasattr(functional, "rnnt_loss"):
        pytest.skip("this torchaudio has no rnnt_loss")
    head, hidden, lengths, tokens, counts = inputs()
    head, hidden = head.float(), hidden.float()
    logits = head.joiner(hidden[:, :, None], head.predict(tokens)[:, None])
    theirs = functional.rnnt_loss(
        logits, tokens.int(), lengths.int(), counts.int(), blank=0, reduction="mean"
    )
    ours = FullTransducerLoss()(head, hidden, lengths, tokens, counts)
    torch.testing.assert_close(ours, theirs)
    for g, h in zip(gradients(ours, head), gradients(theirs, head), strict=True):
        assert (g is None) == (h is None)
        if g is not None:
            torch.testing.assert_close(g, h, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("topology", ["regular", "modified", "constrained"])
def test_pruned_loss_with_all_columns(topology):
    head, *batch = inputs()
    loss = PrunedTransducerLoss(
        width=7, simple_scale=0.3, delay_penalty=0.05, topology=topology, warmup=0
    )
    ours = loss(head, *batch)
    hidden, lengths, tokens, counts = batch
    simple, _, _ = simple_transducer(
        head.simple_am(hidden),
        head.simple_lm(head.predict(tokens)),
        tokens,
        lengths,
        counts,
        lm_only_scale=0.25,
        am_only_scale=0.0,
        delay_penalty=0.05,
        topology=topology,
    )
    full = FullTransducerLoss(0.05, topology)(head, *batch)
    expected = 0.3 * simple.mean() + full
    torch.testing.assert_close(ours, expected)
    for g, h in zip(gradients(ours, head), gradients(expected, head), strict=True):
        torch.testing.assert_close(g, h)


def test_pruned_loss_scores_the_windows_alone():
    head, *batch = inputs()
    hidden, lengths, tokens, counts = batch
    scored = []
    head.joiner.register_forward_hook(lambda module, args, output: scored.append(output.shape))
    simple, pruned = PrunedTransducerLoss(width=3).losses(head, *batch, delay_penalty=0.0)
    assert scored == [(4, 12, 3, UNITS)]
    predicted = head.predict(tokens)
    expected, px, py = simple_transducer(
        head.simple_am(hidden),
        head.simple_lm(predicted),
        tokens,
        lengths,
        counts,
        lm_only_scale=0.25,
    )
    torch.testing.assert_close(simple, expected)
    ranges = prune_ranges(px, py, lengths, counts, 3)
    logits = head.joiner(hidden[:, :, None], predicted[:, None])
    kept = logits.gather(2, ranges[..., None].expand(-1, -1, -1, UNITS))
    expected = pruned_transducer(kept, tokens, ranges, lengths, counts)
    torch.testing.assert_close(pruned, expected)
    assert (pruned[0] > transducer(logits, lengths, tokens, counts)[0]).item()


def test_texts_that_do_not_fit_count_nothing():
    head, hidden, lengths, tokens, counts = inputs()
    lengths = torch.tensor([12, 9, 7, 3])  # of 5 tokens, one a frame at most
    for loss in (
        FullTransducerLoss(topology="modified"),
        PrunedTransducerLoss(width=3, topology="modified", warmup=0),
    ):
        every = loss(head, hidden, lengths, tokens, counts)
        rest = loss(head, hidden[:3], lengths[:3], tokens[:3], counts[:3])
        torch.testing.assert_close(every, rest * 3 / 4)
        for g, h in zip(gradients(every, head), gradients(rest, head), strict=True):
            if g is not None:
                torch.testing.assert_close(g, h * 3 / 4)


def test_warmup():
    head, *batch = inputs()
    loss = PrunedTransducerLoss(width=3, simple_scale=0.5, delay_penalty=0.1, warmup=4)
    plain = [x.mean() for x in loss.losses(head, *batch, delay_penalty=0.0)]
    penalised = [x.mean() for x in loss.losses(head, *batch, delay_penalty=0.1)]
    assert (plain[0] - penalised[0]).abs() > 1e-3
    for warm in (0.0, 0.25, 0.5, 0.75):
        expected = (1 - 0.5 * warm) * plain[0] + (0.1 + 0.9 * warm) * plain[1]
        torch.testing.assert_close(loss(head, *batch), expected)
        # An evaluation in between has the penalty and the scales of the end, and does not count.
        loss.eval()
        torch.testing.assert_close(loss(head, *batch), 0.5 * penalised[0] + penalised[1])
        loss.train()
    for _ in range(2):
        torch.testing.assert_close(loss(head, *batch), 0.5 * penalised[0] + penalised[1])
    again = PrunedTransducerLoss(width=3, delay_penalty=0.1, warmup=4)
    again.load_state_dict(loss.state_dict())
    torch.testing.assert_close(again(head, *batch), 0.5 * penalised[0] + penalised[1])


def test_a_penalty_moves_tokens_forward():
    # All is equally likely: one token anywhere in ten frames; its mean frame says when.
    lengths, tokens, counts = torch.tensor([10]), torch.tensor([[2]]), torch.tensor([1])
    am, lm = torch.zeros(1, 10, 3), torch.zeros(1, 2, 3)
    frames = []
    for penalty in (0.0, 0.1, 1.0):
        _, px, _ = simple_transducer(
            am, lm, tokens, lengths, counts, delay_penalty=penalty, topology="modified"
        )
        frames.append((px[0, 0] * torch.arange(10)).sum().item())
        weights = torch.exp(-penalty * torch.arange(10.0))
        assert px[0, 0].tolist() == pytest.approx((weights / weights.sum()).tolist(), abs=1e-6)
    assert frames[0] == pytest.approx(4.5)
    assert frames[0] > frames[1] > frames[2]


def test_learns():
    head, *batch = inputs()
    loss = PrunedTransducerLoss(width=3, warmup=10)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    full = FullTransducerLoss()
    before = full(head, *batch).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss(head, *batch).backward()
        optimizer.step()
    assert full(head, *batch).item() < 0.5 * before


def test_from_a_configuration():
    loss = build(PrunedTransducerLoss, {"width": 4, "topology": "modified", "warmup": 0}, "loss")
    assert (loss.width, loss.topology) == (4, "modified")
    loss = build(FullTransducerLoss, {"delay_penalty": 0.01}, "loss")
    assert loss.delay_penalty == 0.01


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"delay_penalty": -0.1}, "delay_penalty"),
        ({"width": 1}, "width has to be 2 or more"),
        ({"width": 0, "topology": "modified"}, "width has to be 1 or more"),
        ({"simple_scale": -1.0}, "simple_scale"),
        ({"lm_only_scale": 0.7, "am_only_scale": 0.4}, "lm_only_scale \\+ am_only_scale"),
        ({"warmup": -1}, "warmup"),
        ({"topology": "rnnt"}, "topology"),
    ],
)
def test_what_cannot_be(options, what):
    with pytest.raises(ConfigError, match=what):
        PrunedTransducerLoss(**options)
    if "delay_penalty" in options or options.get("topology") == "rnnt":
        with pytest.raises(ConfigError, match=what):
            FullTransducerLoss(**options)
