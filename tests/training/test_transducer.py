"""A transducer learns a few utterances by heart, alone and behind a frame reducer."""

from pathlib import Path

import pytest
import torch

from speechattn.config import build, override, read_yaml
from speechattn.data.batches.batch import Item, collate
from speechattn.decoders import StatelessPredictor, Transducer
from speechattn.decoding import TransducerBeamSearch, TransducerGreedySearch, hypothesis_times
from speechattn.decoding.config import search_of
from speechattn.encoders import Encoder, EncoderOutput, FrameReducer
from speechattn.frontends import LogMelFbank
from speechattn.losses import (
    BlankRegularisedCTC,
    FullTransducerLoss,
    JointLoss,
    PrunedTransducerLoss,
)
from speechattn.masks import without_padding
from speechattn.model.directory import build_model
from speechattn.model.speech_model import SpeechModel, Stream
from speechattn.training import TrainingOptions
from speechattn.training.processes import leaves_out
from speechattn.training.task import SpeechTask
from tests.losses.encoding import loss_of

VOCAB = 8
TEXTS = [[2, 3, 3, 4], [5, 2], [6, 4, 5, 6, 2]]


def make_batch():
    torch.manual_seed(0)
    items = []
    for i, text in enumerate(TEXTS):
        # A tone for each token, and silence: 0.12 s each.
        t = torch.arange(1920) / 16000
        tones = [0.3 * torch.sin(2 * torch.pi * 300 * token * t) for token in text]
        audio = torch.cat([x for tone in tones for x in (tone, 0 * tone)])
        audio = audio + 0.01 * torch.randn(len(audio))
        items.append(Item(str(i), "", text, audio.numpy()))
    return collate(items)


class Window(Encoder):
    """Frames of 40 ms that see three to either side: it can tell where a tone begins."""

    input_size, output_size, subsampling_factor = 20, 32, 4

    def __init__(self):
        super().__init__()
        self.window = torch.nn.Conv1d(80, 32, 7, padding=3)

    def encode(self, x, lengths, head=None, chunks=None):
        x, lengths = without_padding(x, lengths), lengths // 4
        x = x[:, : x.shape[1] // 4 * 4].unflatten(1, (-1, 4)).flatten(2)
        x = self.window(x.transpose(1, 2)).transpose(1, 2).tanh()
        return EncoderOutput(without_padding(x, lengths), lengths, {})


def make_model(simple, reducer):
    torch.manual_seed(0)
    stream = Stream(LogMelFbank(num_bins=20), Window())
    head = Transducer(StatelessPredictor(VOCAB, 16), 32, 32, VOCAB, simple=simple)
    reducer = FrameReducer(0.9, warmup=20) if reducer else None
    return SpeechModel(VOCAB, stream, ctc_dropout=0.0, transducer=head, frame_reducer=reducer)


CASES = {
    "full": (lambda: JointLoss(transducer=FullTransducerLoss(0.2, "modified")), False),
    "pruned": (
        lambda: JointLoss(
            transducer=PrunedTransducerLoss(width=3, warmup=20, topology="modified"),
            transducer_weight=0.5,
            ctc=BlankRegularisedCTC(max_repeats=0),
        ),
        True,
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_learns_by_heart(name):
    make_loss, reduces = CASES[name]
    loss, batch = make_loss(), make_batch()
    model = make_model(simple=reduces, reducer=reduces)
    task = SpeechTask(model, loss, TrainingOptions())
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    model.train()
    for step in range(110):
        optimizer.zero_grad()
        parts = loss_of(loss, model, batch)
        parts.loss.backward()
        optimizer.step()
        if step == 0:
            first = parts
            assert all(p.grad is not None for p in model.parameters())
    assert parts.transducer_loss < 0.1 * first.transducer_loss
    share = loss.transducer_weight
    torch.testing.assert_close(
        parts.loss,
        share * parts.transducer_loss + (1 - share) * parts.ctc_loss,
        check_dtype=False,
    )
    model.eval()
    with torch.no_grad():
        evidence = model.outputs(batch.audio, batch.audio_lengths)
        encoded = model.encode_streams(batch.audio, batch.audio_lengths)
        assert [h.tokens for h in task.greedy(encoded)] == TEXTS
        valid = loss_of(loss, model, batch)
    for search in (TransducerGreedySearch(), TransducerBeamSearch()):
        found = [best for best, *_ in search.search(evidence)]
        assert [h.tokens for h in found] == TEXTS
        for row, h in enumerate(found):
            assert len(hypothesis_times(evidence, row, h)) == len(h.tokens)
            assert all(0 <= t < evidence[0].lengths[row] for t in h.frames)
    if not reduces:
        assert model.frame_reducer is None and parts.kept_frames is None
        return
    # As few frames as there are tokens, or a few more.
    bound = sum(map(len, TEXTS)) / evidence[0].lengths.sum().item()
    assert first.kept_frames == 1.0
    for kept in (parts.kept_frames, valid.kept_frames, torch.tensor(model.frame_reducer.share())):
        assert bound - 1e-6 <= kept.item() < bound + 0.1


def test_a_small_efficient_conformer_learns():
    """The published transducer with fewer and narrower blocks."""
    config = read_yaml(EFFICIENT)
    override(config, ["model.audio.augment=null", "model.transducer.memory_size=32",
                      "model.transducer.width=32"])  # fmt: skip
    small = {"widths": [16, 24, 32], "num_blocks": [1, 1, 1], "dropout": 0.0}
    config["model"]["audio"]["encoder"]["init_args"].update(small)
    config["model"]["transducer"]["predictor"]["init_args"]["width"] = 32
    torch.manual_seed(0)
    model, loss = build_model(config["model"], VOCAB), build(JointLoss, config["loss"], "loss")
    loss.check(model)
    batch, losses = make_batch(), []
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(loss_of(loss, model, batch).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    assert not model.transducer.predictor.embedding.weight[0].any()


EFFICIENT = Path(__file__).parents[2] / "conf" / "efficient_conformer_transducer_11m.yaml"
RECIPE = Path(__file__).parents[2] / "recipes" / "grid" / "conf" / "transducer.yaml"


@pytest.mark.parametrize("reduces", [False, True])
def test_the_recipe(reduces):
    config = read_yaml(RECIPE)
    if reduces:
        override(config, ["model.frame_reducer={threshold: 0.9, warmup: 1000}"])
        regular = "class_path: speechattn.losses.BlankRegularisedCTC, init_args: {max_repeats: 1}"
        override(config, [f"loss.ctc={{{regular}}}"])
    model, loss = build_model(config["model"], 150), build(JointLoss, config["loss"], "loss")
    build(TrainingOptions, config["training"], "training")
    loss.check(model)
    search_of(config).check_model(model)
    assert (model.frame_reducer is not None) == reduces
    assert 0.6e6 < model.num_parameters() < 1e6
    assert not leaves_out(model, loss)


def test_ddp_waits_for_what_learns():
    simple, plain = (make_model(s, False) for s in (True, False))
    for model in (simple, plain):
        del model.streams["audio"]  # for all that is known of an encoder from elsewhere
    full, pruned = JointLoss(transducer=FullTransducerLoss()), CASES["pruned"][0]()
    assert leaves_out(simple, full)
    assert leaves_out(plain, JointLoss())
    assert not leaves_out(plain, full)
    assert not leaves_out(simple, pruned)
