"""Within an epoch: whole files, an exact restart; moving averages of weights."""

import csv
import logging
from pathlib import Path

import pytest
import torch

from speechattn.data.batches.dataset import SpeechDataset
from speechattn.data.batches.loader import EpochLoader
from speechattn.data.batches.sampler import PaddedFrameBatches
from speechattn.data.tokenizers import Tokenizer
from speechattn.model.directory import load_model
from speechattn.training import average
from speechattn.training.checkpoints import WholeFiles
from speechattn.training.task import SpeechTask


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def last(folder: Path) -> dict:
    return torch.load(folder / "last.ckpt", weights_only=False)


def assert_same_run(one: Path, other: Path) -> None:
    first, second = last(one), last(other)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state"):
        torch.testing.assert_close(first.get(key), second.get(key), atol=0, rtol=0)
    for key in ("epoch", "global_step"):
        assert first[key] == second[key]
    figures = [[{k: v for k, v in r.items() if k != "seconds"} for r in rows(x)]
               for x in (one, other)]  # fmt: skip
    assert figures[0] == figures[1]


@pytest.fixture
def small_batches(tiny_config):
    """Epochs of five batches or so."""

    def make(modality="av", **training):
        config = tiny_config(modality, save_steps=1, **training)
        config["data"]["batch_seconds"] = 1.6
        return config

    return make


@pytest.fixture
def watch(monkeypatch):
    """What is learnt from, in order; a run is interrupted in its n-th batch."""

    class Watch:
        batches: list[tuple[int, int, tuple[str, ...]]] = []
        stop_at = -1

    found = Watch()
    original = SpeechTask.training_step

    def step(self, batch, index):
        found.stop_at -= 1
        if found.stop_at == -1:
            raise KeyboardInterrupt
        found.batches.append((self.trainer.current_epoch, index, tuple(batch.ids)))
        return original(self, batch, index)

    monkeypatch.setattr(SpeechTask, "training_step", step)
    found.batches = []
    found.stop_at = -1
    return found


def test_the_last_epoch_is_what_a_run_goes_on_from(
    small_batches, train_tiny, tmp_path, monkeypatch
):
    """Also where it was worse than those that are kept."""
    errors = iter([5.0, 3.0, 4.0, 6.0])
    original = SpeechTask.log

    def log(self, name, value, *arguments, **options):
        if name == "valid_error":
            value = torch.tensor(next(errors))
        return original(self, name, value, *arguments, **options)

    monkeypatch.setattr(SpeechTask, "log", log)
    folder = train_tiny(small_batches("audio", max_epochs=4, keep=1), tmp_path)
    assert last(folder)["epoch"] == 3
    assert [p.name for p in folder.glob("epoch=*.ckpt")] == ["epoch=001-error=3.000.ckpt"]


@pytest.mark.parametrize(
    ("stop_at", "accumulate", "workers", "ema"),
    [
        pytest.param(2, 1, 0, 0.0, id="first epoch"),
        pytest.param(3, 2, 2, 0.0, id="workers", marks=pytest.mark.slow),
        pytest.param(6, 2, 0, 0.0, id="first step", marks=pytest.mark.slow),
        pytest.param(8, 2, 0, 0.9, id="average"),
    ],
)
def test_restart_within_an_epoch(
    small_batches, train_tiny, tmp_path, watch, stop_at, accumulate, workers, ema
):
    """To the bit: dropout, augmentation, figures; and nothing that was passed is read again."""
    config = small_batches(accumulate=accumulate, ema=ema)
    config["data"]["num_workers"] = workers
    straight = train_tiny(config, tmp_path / "straight")
    expected, watch.batches = watch.batches, []
    epoch, index, _ = expected[stop_at]
    assert index > 0  # within an epoch, or within its first step
    watch.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        train_tiny(config, tmp_path / "stopped")
    kept = index // accumulate * accumulate  # a step is repeated whole
    assert last(tmp_path / "stopped" / "train")["epoch"] == epoch - (kept == 0)
    first, watch.batches = watch.batches, []
    reads = []
    with pytest.MonkeyPatch.context() as patch:
        original = SpeechDataset.__getitem__

        def load(self, number):
            reads.append((self.epoch, self.cuts[number].id))
            return original(self, number)

        patch.setattr(SpeechDataset, "__getitem__", load)
        stopped = train_tiny(config, tmp_path / "stopped")
    assert watch.batches[0][:2] == (epoch, kept)
    assert first[: stop_at - index + kept] + watch.batches == expected
    assert_same_run(stopped, straight)
    if not workers:  # whose reads are not seen here
        passed = {name for e, i, ids in expected if e == epoch and i < kept for name in ids}
        assert bool(passed) == bool(kept)
        assert not passed & {name for e, name in reads if e == epoch}


@pytest.mark.slow
def test_settings_may_change_within_an_epoch(small_batches, train_tiny, tmp_path, watch, caplog):
    """The epoch goes on at the same share of it, and says so; the next ones are whole."""
    config = small_batches("audio", max_epochs=3)
    watch.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        train_tiny(config, tmp_path)
    watch.batches = []
    config["data"]["batch_seconds"] = 0.1  # every clip alone
    folder = train_tiny(config, tmp_path)
    assert "has 8 batches now, and goes on at" in caplog.text
    epochs = [epoch for epoch, _, _ in watch.batches]
    assert 1 <= epochs.count(0) < 8 and epochs.count(1) == epochs.count(2) == 8
    assert [row["epoch"] for row in rows(folder)] == ["0", "1", "2"]


def test_save_steps_zero_saves_after_epochs_only(small_batches, train_tiny, tmp_path, watch):
    config = small_batches("audio")
    config["training"]["save_steps"] = 0
    watch.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        train_tiny(config, tmp_path)
    assert not (tmp_path / "train" / "last.ckpt").exists()


def test_a_place_in_the_loader():
    sampler = PaddedFrameBatches([1.0] * 9, 2.0, shuffle=False)
    loader = EpochLoader(list(range(9)), batch_sampler=sampler)
    whole = [batch.tolist() for batch in loader]
    assert len(whole) == len(loader) == 5
    walk = iter(loader)
    next(walk), next(walk)
    state = loader.state_dict()
    other = EpochLoader(
        list(range(9)), batch_sampler=PaddedFrameBatches([1.0] * 9, 2.0, shuffle=False)
    )
    other.load_state_dict(state)
    assert len(other) == 5
    assert [batch.tolist() for batch in other] == whole[2:]
    assert [batch.tolist() for batch in other] == whole  # the next time


def test_a_checkpoint_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"a": torch.ones(3)}, path)
    save = torch.save

    def fail(what, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        WholeFiles().save_checkpoint({"a": torch.zeros(3)}, path)
    assert torch.load(path)["a"].sum() == 3
    monkeypatch.setattr(torch, "save", save)
    WholeFiles().save_checkpoint({"a": torch.zeros(3)}, path)
    assert torch.load(path)["a"].sum() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


# ------------------------------------------------------------------------------ moving averages


def test_the_average_follows_the_weights(
    small_batches, train_tiny, tiny_corpus, tmp_path, monkeypatch
):
    """By hand over all steps; validated, kept and averaged are the averages."""
    decay, taken, validated = 0.8, [], []
    original, validate = SpeechTask.on_train_batch_start, SpeechTask.validation_step

    def start(self, batch, index):
        taken.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return original(self, batch, index)

    def check(self, batch, index):
        validated.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return validate(self, batch, index)

    monkeypatch.setattr(SpeechTask, "on_train_batch_start", start)
    monkeypatch.setattr(SpeechTask, "validation_step", check)
    config = small_batches("audio", ema=decay, keep=1)
    folder = train_tiny(config, tmp_path)
    checkpoint = last(folder)
    own = {k.removeprefix("model."): v for k, v in checkpoint["current_model_state"].items()}
    states = [*taken[1:], own]  # after each step
    expected = {k: v.double() for k, v in states[0].items()}
    for n, state in enumerate(states[1:], start=1):
        share = min(decay, (1 + n) / (10 + n))
        for name, value in state.items():
            if value.is_floating_point():
                expected[name] = share * expected[name] + (1 - share) * value.double()
    found = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items()}
    for name, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found, validated[-1], atol=0, rtol=0)
    assert not torch.equal(found["ctc.weight"], own["ctc.weight"])
    tokens = tiny_corpus.folder / "tokens"
    model = load_model(average(config, tmp_path, tokens, best=1)).state_dict()
    (kept,) = [p for p in folder.glob("epoch=*.ckpt")]
    best = torch.load(kept, weights_only=False)["state_dict"]
    torch.testing.assert_close(model, {k.removeprefix("model."): v for k, v in best.items()})
    assert Tokenizer.load(tmp_path / "model").tokens == Tokenizer.load(tokens).tokens


@pytest.mark.slow
def test_going_on_without_the_average(small_batches, train_tiny, tmp_path, caplog):
    """From the weights themselves; and with one again, from what there is."""
    caplog.set_level(logging.WARNING)
    folder = train_tiny(small_batches("audio", max_epochs=1, ema=0.9), tmp_path)
    own = last(folder)["current_model_state"]
    began = []
    original = SpeechTask.on_train_start

    def start(self):
        began.append({k: v.clone() for k, v in self.state_dict().items()})
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpeechTask, "on_train_start", start)
        found = last(train_tiny(small_batches("audio", max_epochs=2), tmp_path))
    torch.testing.assert_close(began[0], own, atol=0, rtol=0)
    assert "current_model_state" not in found
    train_tiny(small_batches("audio", max_epochs=3, ema=0.9), tmp_path)
    assert "current_model_state" in last(folder)
