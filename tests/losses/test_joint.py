"""The joint loss: each part against a definition of its own, and a gradient for every parameter."""

import itertools
import math

import pytest
import torch
from torch import nn

from speechattn.data.batch import Item, collate
from speechattn.losses import JointLoss, label_smoothing_loss
from speechattn.losses.joint import ctc_loss
from speechattn.model_dir import build_model

VOCAB = 9
LENGTHS = torch.tensor([5, 1, 3])


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_label_smoothing_is_a_divergence(smoothing, per_token):
    """Against torch's kl_div, one token after the other."""
    logits = torch.randn(3, 5, VOCAB, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, VOCAB, (3, 5))
    found = label_smoothing_loss(logits, targets, LENGTHS, smoothing, per_token)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b, n in enumerate(LENGTHS.tolist()):
        for u in range(n):
            wanted = torch.full((VOCAB,), smoothing / (VOCAB - 1), dtype=torch.float64)
            wanted[targets[b, u]] = 1 - smoothing
            total = total + nn.functional.kl_div(
                logits[b, u].log_softmax(-1), wanted, reduction="sum"
            )
            count += 1
    expected = total / (count if per_token else 3)
    torch.testing.assert_close(found, expected, check_dtype=False, atol=1e-5, rtol=1e-5)
    (ours,) = torch.autograd.grad(found, logits)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_label_smoothing_of_zero_is_cross_entropy():
    logits, targets = torch.randn(2, 4, VOCAB), torch.randint(0, VOCAB, (2, 4))
    found = label_smoothing_loss(logits, targets, torch.tensor([4, 4]), 0.0, True)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(found, expected)


def test_a_perfect_model_scores_nothing():
    wanted = torch.full((1, 1, VOCAB), 0.1 / (VOCAB - 1))
    wanted[0, 0, 3] = 0.9
    loss = label_smoothing_loss(wanted.log(), torch.tensor([[3]]), torch.tensor([1]), 0.1, False)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def brute_force_ctc(log_probs: torch.Tensor, tokens: list[int]) -> float:
    """-log of the sum over all labellings of the frames that collapse to the tokens."""
    frames, units = log_probs.shape
    total = 0.0
    for path in itertools.product(range(units), repeat=frames):
        collapsed = [label for label, _ in itertools.groupby(path) if label != 0]
        if collapsed == tokens:
            total += math.exp(sum(log_probs[t, k].item() for t, k in enumerate(path)))
    return -math.log(total)


def test_ctc_against_brute_force():
    log_probs = torch.randn(3, 5, 3).log_softmax(-1)
    lengths, token_lengths = torch.tensor([5, 3, 4]), torch.tensor([2, 2, 0])
    tokens = torch.tensor([[1, 1], [2, 1], [0, 0]])
    expected = [
        brute_force_ctc(log_probs[i, :t], tokens[i, :u].tolist())
        for i, (t, u) in enumerate(zip(lengths.tolist(), token_lengths.tolist(), strict=True))
    ]
    found = ctc_loss(log_probs, lengths, tokens, token_lengths)
    assert found.item() == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_ctc_is_the_mean_of_the_items():
    log_probs = torch.randn(4, 12, VOCAB).log_softmax(-1)
    lengths, token_lengths = torch.tensor([12, 7, 9, 2]), torch.tensor([4, 3, 1, 2])
    tokens = torch.randint(1, VOCAB - 1, (4, 4))
    tokens[3] = 5  # two equal tokens need three frames: impossible in two
    alone = [
        nn.functional.ctc_loss(
            log_probs[i, :t, None], tokens[i, :u], torch.tensor(t), torch.tensor(u), reduction="sum"
        ).item()
        for i, (t, u) in enumerate(zip(lengths.tolist(), token_lengths.tolist(), strict=True))
    ]
    assert alone[3] == math.inf
    found = ctc_loss(log_probs, lengths, tokens, token_lengths)
    assert found.item() == pytest.approx(sum(alone[:3]) / 4, rel=1e-5)


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    items = []
    for name, tokens, frames in (("a", [2, 3, 3, 4], 30), ("b", [5], 18), ("c", [6, 2], 24)):
        audio = 0.1 * torch.randn(640 * frames, generator=rng)
        video = torch.randint(0, 256, (frames, 16, 16), dtype=torch.uint8, generator=rng)
        items.append(Item(name, "", tokens, audio.numpy(), video.numpy()))
    return collate(items)


def make_model(tiny_model, modality: str):
    torch.manual_seed(0)
    return build_model(tiny_model(modality), VOCAB)


@pytest.mark.parametrize("modality", ["audio", "video", "av"])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3, 1.0])
def test_total_is_the_stated_sum(tiny_model, batch, modality, ctc_weight):
    model = make_model(tiny_model, modality).eval()
    parts = JointLoss(ctc_weight, 0.1, stream_ctc_weight=0.4)(model, batch)
    encoded = model.encode_streams(
        batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
    )
    ctc = ctc_loss(
        model.ctc_log_probs(encoded.hidden), encoded.lengths, batch.tokens, batch.token_lengths
    )
    torch.testing.assert_close(parts.ctc, ctc)
    expected = ctc_weight * ctc
    if ctc_weight < 1:
        attention = 0.0
        for i, n in enumerate(batch.token_lengths.tolist()):  # each sentence alone, unpadded
            tokens = batch.tokens[i, :n]
            sos = torch.tensor([VOCAB - 1])
            logits = model.decoder(
                torch.cat([sos, tokens])[None],
                torch.tensor([n + 1]),
                encoded.hidden[i : i + 1, : int(encoded.lengths[i])],
                encoded.lengths[i : i + 1],
            )
            target = torch.cat([tokens, sos])[None]
            one = label_smoothing_loss(logits, target, torch.tensor([n + 1]), 0.1, False)
            attention = attention + one / 3
        torch.testing.assert_close(parts.attention, attention, atol=1e-4, rtol=1e-4)
        expected = expected + (1 - ctc_weight) * attention
    else:
        assert parts.attention is None
    if modality == "av":
        streams = [
            ctc_loss(model.stream_log_probs(name, h), n, batch.tokens, batch.token_lengths)
            for name, (h, n) in encoded.streams.items()
        ]
        torch.testing.assert_close(parts.streams, sum(streams) / 2)
        expected = expected + 0.4 * parts.streams
    else:
        assert parts.streams is None
    torch.testing.assert_close(parts.total, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["conformer", "e_branchformer"])
@pytest.mark.parametrize("modality", ["audio", "video", "av"])
def test_every_parameter_learns(tiny_model, batch, modality, encoder):
    torch.manual_seed(0)
    model = build_model(tiny_model(modality, encoder), VOCAB).train()
    JointLoss(0.3, stream_ctc_weight=0.3)(model, batch).total.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_an_item_without_frames_does_no_harm(tiny_model):
    """Sound shorter than a hidden frame: the loss and its gradient stay finite."""
    model = make_model(tiny_model, "audio").train()
    items = [
        Item("short", "", [2], torch.randn(500).numpy()),
        Item("long", "", [2, 3], torch.randn(16000).numpy()),
    ]
    total = JointLoss(0.3)(model, collate(items)).total
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
