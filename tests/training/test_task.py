"""The Lightning module: its optimiser, and the error it validates by."""

import lightning as L
import pytest
import torch
from kaldialign import edit_distance

from speechattn.data.batches import DataOptions
from speechattn.data.batches.datamodule import SpeechData
from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding.ctc import ctc_greedy
from speechattn.errors import ConfigError
from speechattn.losses import JointLoss
from speechattn.model.directory import build_model
from speechattn.training import TrainingOptions
from speechattn.training.base_task import decayed
from speechattn.training.task import SpeechTask


@pytest.fixture
def task(tiny_model, tiny_corpus):
    torch.manual_seed(0)
    tokenizer = Tokenizer.load(tiny_corpus.folder / "tokens")
    model = build_model(tiny_model("av"), tokenizer.vocab_size)
    return SpeechTask(model, JointLoss(stream_ctc_weight=0.2), TrainingOptions(weight_decay=0.03))


@pytest.fixture
def data(tiny_corpus):
    folder = tiny_corpus.folder
    return SpeechData(
        DataOptions(batch_seconds=3.0, num_workers=0),
        folder / "cuts_train.jsonl.gz",
        folder / "cuts_train.jsonl.gz",
        Tokenizer.load(folder / "tokens"),
        modalities=("audio", "video"),
        crops=folder / "crops",
        crop_size=16,
    )


def test_decay_is_for_matrices(task):
    model = task.model
    with_decay, without = list(decayed(model, True)), list(decayed(model, False))
    assert {id(p) for p in with_decay + without} == {id(p) for p in model.parameters()}
    assert len(with_decay) + len(without) == len(list(model.parameters()))
    assert any(p is model.ctc.weight for p in with_decay)
    assert any(p is model.ctc.bias for p in without)
    assert any(p is model.fusion.norm.weight for p in without)


def test_validation_error_is_that_of_the_set(task, data):
    """Errors over tokens of the whole set, not a mean over batches."""
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    (found,) = trainer.validate(task, data, verbose=False)
    model = task.model.eval()
    errors = count = loss = size = 0
    for batch in data.val_dataloader():
        with torch.no_grad():
            hidden, lengths = model.encode(
                batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
            )
            loss += float(task.loss(model, task.encode(batch), batch).loss) * len(batch)
        size += len(batch)
        hyps = ctc_greedy(model.ctc_log_probs(hidden), lengths)
        for hyp, ref, n in zip(hyps, batch.tokens.tolist(), batch.token_lengths, strict=True):
            errors += edit_distance(ref[:n], hyp.tokens)["total"]
            count += int(n)
    assert found["valid_error"] == pytest.approx(100 * errors / count)
    assert found["valid_loss"] == pytest.approx(loss / size, rel=1e-4)
    assert found["valid_error"] > 0


def test_optimiser(task, data):
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, data)
    (optimizer,) = trainer.optimizers
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.03, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.98)
    # Warm-up of 500 steps: the rate after n of them.
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * (trainer.global_step + 1) / 500)


def test_a_weight_without_its_part_is_refused_before_training(task):
    with pytest.raises(ConfigError, match="reverse_weight"):
        SpeechTask(task.model, JointLoss(reverse_weight=0.3), TrainingOptions())


def test_every_part_of_the_loss_is_recorded(tiny_model, tiny_corpus, data):
    section = tiny_model("av")
    section["decoder"]["class_path"] = "speechattn.decoders.BidirectionalDecoder"
    section["audio"]["encoder"]["init_args"].update(num_blocks=2, intermediate=[1])
    torch.manual_seed(0)
    model = build_model(section, Tokenizer.load(tiny_corpus.folder / "tokens").vocab_size)
    loss = JointLoss(stream_ctc_weight=0.2, reverse_weight=0.3, intermediate_weight=0.3)
    task = SpeechTask(model, loss, TrainingOptions())
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    (found,) = trainer.validate(task, data, verbose=False)
    parts = {name: found[f"valid_{name}_loss"]
             for name in ("ctc", "att", "reverse", "intermediate", "stream")}  # fmt: skip
    ctc = 0.7 * parts["ctc"] + 0.3 * parts["intermediate"]
    attention = 0.7 * parts["att"] + 0.3 * parts["reverse"]
    total = 0.3 * ctc + 0.7 * attention + 0.2 * parts["stream"]
    assert found["valid_loss"] == pytest.approx(total, rel=1e-4)


def test_frozen_parts_keep_everything(tiny_model, tiny_corpus, data):
    """Weights and running statistics too, beyond a validation pass; the rest learns."""
    torch.manual_seed(0)
    model = build_model(tiny_model("av"), Tokenizer.load(tiny_corpus.folder / "tokens").vocab_size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = TrainingOptions(freeze=("streams.audio.", "streams.video.frontend."), warmup_steps=1)
    task = SpeechTask(model, JointLoss(stream_ctc_weight=0.2), options)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=2,
    )  # fmt: skip
    trainer.fit(task, data)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert not any(k.startswith(options.freeze) for k in changed)
    assert {"ctc.weight", "fusion.norm.running_mean", "decoder.output.weight"} <= changed
    assert any(k.startswith("streams.video.encoder.") for k in changed)


def test_freezing_nothing_is_an_error(tiny_model):
    model = build_model(tiny_model("audio"), 9)
    with pytest.raises(ConfigError, match="training.freeze.*'stream.'"):
        SpeechTask(model, JointLoss(), TrainingOptions(freeze=("stream.",)))
