"""The transducer's head and its joiner, alone and as part of a model."""

import pytest
import torch

from speechattn.decoders import Joiner, LstmPredictor, StatelessPredictor, Transducer
from speechattn.encoders import FrameReducer
from speechattn.errors import ConfigError
from speechattn.losses import FullTransducerLoss, JointLoss, PrunedTransducerLoss
from speechattn.model.directory import build_model

VOCAB = 9


def head(**options):
    torch.manual_seed(0)
    return Transducer(StatelessPredictor(VOCAB, 8), 6, 10, VOCAB, **options)


def test_joiner_against_a_pair_at_a_time():
    joiner = Joiner(6, 8, 10, VOCAB)
    frames, predicted = torch.randn(2, 5, 6), torch.randn(2, 3, 8)
    found = joiner(frames[:, :, None], predicted[:, None])
    assert found.shape == (2, 5, 3, VOCAB)
    projected = joiner(
        joiner.encoder_projection(frames)[:, :, None],
        joiner.predictor_projection(predicted)[:, None],
        project=False,
    )
    torch.testing.assert_close(projected, found)
    e, p, o = joiner.encoder_projection, joiner.predictor_projection, joiner.output
    for b, t, u in [(0, 0, 0), (1, 4, 2), (1, 2, 0)]:
        inside = torch.tanh(e.weight @ frames[b, t] + e.bias + p.weight @ predicted[b, u] + p.bias)
        torch.testing.assert_close(found[b, t, u], o.weight @ inside + o.bias)


@pytest.mark.parametrize("loss", [FullTransducerLoss(), PrunedTransducerLoss(width=3, warmup=0)])
def test_losses_take_it(loss):
    simple = isinstance(loss, PrunedTransducerLoss)
    transducer = head(simple=simple)
    hidden, lengths = torch.randn(3, 7, 6), torch.tensor([7, 4, 6])
    tokens, counts = torch.randint(1, VOCAB - 1, (3, 4)), torch.tensor([4, 2, 0])
    value = loss(transducer, hidden, lengths, tokens, counts)
    value.backward()
    for name, p in transducer.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    alone = [
        loss(transducer, hidden[i : i + 1, :t], lengths[i : i + 1], tokens[i : i + 1, :u], c[None])
        for i, (t, u, c) in enumerate(zip(lengths.tolist(), counts.tolist(), counts, strict=True))
    ]
    if not simple:  # pruning goes by columns of the longest text
        torch.testing.assert_close(value, torch.stack(alone).mean())


SECTION = {
    "predictor": {
        "class_path": "speechattn.decoders.LstmPredictor",
        "init_args": {"width": 8},
    },
    "memory_size": 16,
    "width": 8,
}


def test_a_model_from_a_configuration(tiny_model):
    section = {**tiny_model("audio"), "transducer": SECTION, "frame_reducer": {"threshold": 0.8}}
    model = build_model(section, VOCAB)
    assert isinstance(model.transducer.predictor, LstmPredictor)
    assert model.transducer.predictor.vocab_size == model.transducer.vocab_size == VOCAB
    assert model.frame_reducer.threshold == 0.8
    assert model.transducers == [model.transducer]


def test_what_cannot_be(tiny_model):
    with pytest.raises(ConfigError, match="predictor.init_args.vocab_size"):
        Transducer(StatelessPredictor(VOCAB + 1, 8), 6, 10, VOCAB)
    section = tiny_model("audio")
    with pytest.raises(ConfigError, match="memory_size is 3"):
        build_model({**section, "transducer": {**SECTION, "memory_size": 3}}, VOCAB)
    with pytest.raises(ConfigError, match="frame_reducer"):
        build_model({**section, "frame_reducer": {}}, VOCAB)
    model = build_model(section, VOCAB)
    with pytest.raises(ConfigError, match="loss.transducer needs"):
        JointLoss(transducer=FullTransducerLoss()).check(model)
    model.transducer = head(simple=False)
    with pytest.raises(ConfigError, match="simple"):
        JointLoss(transducer=PrunedTransducerLoss()).check(model)
    JointLoss(transducer=FullTransducerLoss()).check(model)
    model.frame_reducer = FrameReducer()
    for weights in ({"transducer_weight": 1.0}, {"ctc_weight": 0.0}):
        with pytest.raises(ConfigError, match="frame_reducer goes by CTC"):
            JointLoss(transducer=FullTransducerLoss(), **weights).check(model)
    JointLoss(transducer=FullTransducerLoss()).check(model)
    with pytest.raises(ConfigError, match="transducer_weight"):
        JointLoss(transducer=FullTransducerLoss(), transducer_weight=1.5)
