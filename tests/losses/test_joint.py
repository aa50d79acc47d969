"""The joint loss: each part against a definition of its own, and a gradient for every parameter."""

import itertools
import math

import pytest
import torch
from torch import nn

from speechattn.data.batches.batch import Item, collate
from speechattn.errors import ConfigError
from speechattn.losses import JointLoss, MwerLoss, label_smoothing_loss
from speechattn.losses.joint import ctc_loss
from speechattn.model.directory import build_model
from tests.losses.encoding import loss_of

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
    parts = loss_of(JointLoss(ctc_weight, 0.1, stream_ctc_weight=0.4), model, batch)
    encoded = model.encode_streams(
        batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
    )
    ctc = ctc_loss(
        model.ctc_log_probs(encoded.hidden), encoded.lengths, batch.tokens, batch.token_lengths
    )
    torch.testing.assert_close(parts.ctc_loss, ctc)
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
        torch.testing.assert_close(parts.att_loss, attention, atol=1e-4, rtol=1e-4)
        expected = expected + (1 - ctc_weight) * attention
    else:
        assert parts.att_loss is None
    if modality == "av":
        streams = [
            ctc_loss(model.stream_log_probs(name, h), n, batch.tokens, batch.token_lengths)
            for name, (h, n) in encoded.streams.items()
        ]
        torch.testing.assert_close(parts.stream_loss, sum(streams) / 2)
        expected = expected + 0.4 * parts.stream_loss
    else:
        assert parts.stream_loss is None
    torch.testing.assert_close(parts.loss, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["conformer", "e_branchformer"])
@pytest.mark.parametrize("modality", ["audio", "video", "av"])
def test_every_parameter_learns(tiny_model, batch, modality, encoder):
    torch.manual_seed(0)
    model = build_model(tiny_model(modality, encoder), VOCAB).train()
    loss_of(JointLoss(0.3, stream_ctc_weight=0.3), model, batch).loss.backward()
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
    total = loss_of(JointLoss(0.3), model, collate(items)).loss
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def bidirectional(section: dict) -> dict:
    """The same `model:` section with a right-to-left decoder beside the other."""
    section["decoder"]["class_path"] = "speechattn.decoders.BidirectionalDecoder"
    section["decoder"]["init_args"]["reverse_blocks"] = 1
    return section


def with_intermediate(section: dict, layers: list[int], self_conditioning: int = 0) -> dict:
    """The same `model:` section with three blocks and intermediate layers among them."""
    for name in ("audio", "video"):
        if name in section:
            section[name]["encoder"]["init_args"].update(
                num_blocks=3, intermediate=layers, self_conditioning=self_conditioning
            )
    return section


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("per_token", [False, True])
def test_right_to_left_is_the_loss_of_reversed_sentences(tiny_model, batch, weight, per_token):
    torch.manual_seed(0)
    model = build_model(bidirectional(tiny_model("audio")), VOCAB).eval()
    found = loss_of(JointLoss(0.4, 0.1, per_token, reverse_weight=weight), model, batch)
    hidden, lengths = model.encode(batch.audio, batch.audio_lengths)
    sums, count = {"left": 0.0, "right": 0.0}, int((batch.token_lengths + 1).sum())
    for i, n in enumerate(batch.token_lengths.tolist()):  # each sentence alone, unpadded
        for name in sums:
            tokens = batch.tokens[i, :n].tolist()
            tokens = tokens if name == "left" else tokens[::-1]
            logits = getattr(model.decoder, name)(
                torch.tensor([[VOCAB - 1, *tokens]]),
                torch.tensor([n + 1]),
                hidden[i : i + 1, : int(lengths[i])],
                lengths[i : i + 1],
            )
            target = torch.tensor([[*tokens, VOCAB - 1]])
            one = label_smoothing_loss(logits, target, torch.tensor([n + 1]), 0.1, False)
            sums[name] = sums[name] + one / (count if per_token else 3)
    attention = (1 - weight) * sums["left"] + weight * sums["right"]
    torch.testing.assert_close(
        found.loss, 0.4 * found.ctc_loss + 0.6 * attention, atol=1e-4, rtol=1e-4
    )
    for name, value, used in (
        ("left", found.att_loss, weight < 1), ("right", found.reverse_loss, weight > 0),
    ):  # fmt: skip
        if used:
            torch.testing.assert_close(value, sums[name], atol=1e-4, rtol=1e-4)
        else:
            assert value is None


@pytest.mark.parametrize("ctc_weight", [0.3, 1.0])
@pytest.mark.parametrize("modality", ["audio", "av"])
def test_intermediate_layers_share_the_ctc_loss(tiny_model, batch, modality, ctc_weight):
    torch.manual_seed(0)
    model = build_model(with_intermediate(tiny_model(modality), [1, 2]), VOCAB).eval()
    found = loss_of(
        JointLoss(ctc_weight, stream_ctc_weight=0.2, intermediate_weight=0.4), model, batch
    )
    plain = loss_of(JointLoss(ctc_weight, stream_ctc_weight=0.2), model, batch)
    assert plain.intermediate_loss is None
    losses = []
    for name, stream in model.streams.items():
        x, n = (batch.audio, batch.audio_lengths) if name == "audio" else (
            batch.video, batch.video_lengths
        )  # fmt: skip
        _, n, layers = stream(x, n)
        assert sorted(layers) == [1, 2]
        head = model.ctc if modality == "audio" else model.stream_ctc[name]
        for hidden in layers.values():
            log_probs = head(hidden).log_softmax(-1)
            losses.append(ctc_loss(log_probs, n, batch.tokens, batch.token_lengths))
    assert len(losses) == (2 if modality == "audio" else 4)
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(found.intermediate_loss, mean)
    torch.testing.assert_close(found.ctc_loss, plain.ctc_loss)
    # 0.4 of the CTC loss moves from the output to the layers.
    expected = plain.loss + ctc_weight * 0.4 * (mean - plain.ctc_loss)
    torch.testing.assert_close(found.loss, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("modality", ["audio", "av"])
def test_every_parameter_of_everything_learns(tiny_model, batch, modality):
    torch.manual_seed(0)
    section = bidirectional(with_intermediate(tiny_model(modality), [1], self_conditioning=VOCAB))
    model = build_model(section, VOCAB).train()
    loss = JointLoss(0.3, stream_ctc_weight=0.3, reverse_weight=0.3, intermediate_weight=0.3)
    loss.check(model)
    loss_of(loss, model, batch).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_expected_errors_share_the_loss_in_training_only(tiny_model, batch):
    model = make_model(tiny_model, "audio").eval()
    loss = JointLoss(0.3, mwer=MwerLoss(weight=0.8, nbest=3))
    without = loss_of(loss, model, batch)
    assert without.risk is None
    model.training = True  # without the dropout of its parts
    parts = loss_of(loss, model, batch)
    hidden, lengths = model.encode(batch.audio, batch.audio_lengths)
    risk = loss.mwer(
        hidden, lengths, model.ctc_log_probs(hidden), model.decoder, batch.tokens,
        batch.token_lengths,
    )  # fmt: skip
    torch.testing.assert_close(parts.risk, risk)
    torch.testing.assert_close(parts.loss, 0.8 * risk + 0.2 * without.loss)


def test_weights_without_their_part_are_named(tiny_model, caplog):
    plain = make_model(tiny_model, "audio")
    both = build_model(bidirectional(tiny_model("audio")), VOCAB)
    inner = build_model(with_intermediate(tiny_model("audio"), [1]), VOCAB)
    JointLoss(0.3).check(plain)
    JointLoss(0.3, reverse_weight=0.3).check(both)
    JointLoss(0.3, intermediate_weight=0.3).check(inner)
    assert not caplog.records
    for loss, model, message in (
        ({"reverse_weight": 0.3}, plain, "loss.reverse_weight is 0.3.*BidirectionalDecoder"),
        ({"reverse_weight": 0.3, "ctc_weight": 1.0}, both, "reverse_weight.*ctc_weight 1"),
        ({"intermediate_weight": 0.2}, plain, "loss.intermediate_weight is 0.2.*`intermediate`"),
        ({"intermediate_weight": 0.2, "ctc_weight": 0.0}, inner, "intermediate_weight.*without"),
    ):
        with pytest.raises(ConfigError, match=message):
            JointLoss(**loss).check(model)
    for loss in (
        {"reverse_weight": -0.1},
        {"intermediate_weight": 1.0},
        {"ctc_weight": 2.0},
        {"label_smoothing": 1.0},
        {"label_smoothing": -0.1},
        {"stream_ctc_weight": -1.0},
    ):
        with pytest.raises(ConfigError, match=f"loss.{next(iter(loss))} has to be"):
            JointLoss(**loss)
    JointLoss(0.3).check(both)
    assert "right-to-left half of the decoder does not learn" in caplog.text
