"""The step: utterances of equal weight, batches and files that are skipped and named."""

import csv
import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lhotse import CutSet

from speechattn.data.batches.sampler import PaddedFrameBatches
from speechattn.errors import ConfigError, SpeechattnError
from speechattn.losses import JointLoss
from speechattn.training import TrainingOptions, train
from speechattn.training.task import SpeechTask


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.ckpt", weights_only=False)["state_dict"]


@pytest.fixture
def by_layer_norm(tiny_config, tiny_model):
    """A configuration in which no item of a batch depends on another."""

    def make(**training):
        config = tiny_config("audio", **training)
        config["model"] = tiny_model("audio", "e_branchformer")
        config["loss"] = {}
        return config

    return make


def test_accumulated_batches_learn_what_one_batch_does(
    by_layer_norm, train_tiny, tmp_path, monkeypatch
):
    """Two batches of different sizes and their utterances as one: the same weights."""
    config = by_layer_norm(max_epochs=3, accumulate=2)
    config["data"]["batch_seconds"] = 2.2
    parts = train_tiny(config, tmp_path / "parts")
    original, sizes = PaddedFrameBatches.batches, []

    def batches(self):
        found = original(self)
        if not self.shuffle:
            return found
        sizes.append([len(batch) for batch in found])
        return [sum(found[i : i + 2], []) for i in range(0, len(found), 2)]

    monkeypatch.setattr(PaddedFrameBatches, "batches", batches)
    monkeypatch.setattr(
        PaddedFrameBatches, "__len__", lambda self: len(self.batches()) - self.position
    )
    config["training"]["accumulate"] = 1
    whole = train_tiny(config, tmp_path / "whole")
    assert any(len(set(each[:2])) == 2 for each in sizes) and any(len(each) % 2 for each in sizes)
    assert rows(parts)[-1]["step"] == rows(whole)[-1]["step"]
    for mine, theirs in zip(rows(parts), rows(whole), strict=True):
        assert float(mine["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=1e-4)
    # Not biases of keys: their gradient is nothing but rounding, which AdamW makes large.
    found, expected = (
        {k: v for k, v in state(each).items() if not k.endswith(("key_value.bias", "project.bias"))}
        for each in (parts, whole)
    )
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_the_gradient_is_clipped(by_layer_norm, train_tiny, tmp_path, monkeypatch):
    """To a norm that torch agrees with, once the utterances have been counted."""
    norms = []
    original = SpeechTask.configure_gradient_clipping

    def clip(self, *arguments, **options):
        original(self, *arguments, **options)
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))

    monkeypatch.setattr(SpeechTask, "configure_gradient_clipping", clip)
    train_tiny(by_layer_norm(max_epochs=1, clip=0.25), tmp_path / "1")
    assert norms == pytest.approx([0.25] * len(norms), rel=1e-4)
    norms.clear()
    train_tiny(by_layer_norm(max_epochs=1, clip=0.0), tmp_path / "2")
    assert min(norms) > 0.3


@pytest.fixture
def broken(monkeypatch):
    """Make the loss of every batch with a cut of these infinite, or its gradient."""

    def arm(names, what="loss", value=float("nan")):
        original, encode = JointLoss.forward, SpeechTask.encode

        def is_bad(model, batch):
            return model.training and set(names) & set(batch.ids)

        def spoiled(self, batch):
            if is_bad(self.model, batch) and what == "statistics":  # as an infinite sound would
                batch.video = batch.video.float()
                batch.video[0] = value
            return encode(self, batch)

        def forward(self, model, encoded, batch):
            parts = original(self, model, encoded, batch)
            if is_bad(model, batch) and what == "loss":
                parts.loss = parts.loss * value
            if is_bad(model, batch) and what == "gradient":
                parts.loss = parts.loss + 0 * (parts.loss - parts.loss.detach()).sqrt()
            return parts

        monkeypatch.setattr(SpeechTask, "encode", spoiled)
        monkeypatch.setattr(JointLoss, "forward", forward)

    return arm


@pytest.mark.parametrize(
    "what", [pytest.param("loss", marks=pytest.mark.slow), "gradient", "statistics"]
)
def test_a_batch_that_is_no_number_is_left_out_and_named(
    tiny_config, train_tiny, tmp_path, caplog, broken, what
):
    broken(["s1_u3"], what)
    config = tiny_config("video", max_epochs=2)
    config["data"]["batch_seconds"] = 1.5
    folder = train_tiny(config, tmp_path)
    told = [r.message for r in caplog.records if "skipped, its" in r.message]
    assert len(told) == 2  # once an epoch
    for message in told:
        assert ("its gradient is nan" if what == "gradient" else "its loss is nan") in message
        assert "s1_u3" in message and " utterances padded to 0." in message
    table = rows(folder)
    assert [row["skipped"] for row in table] == ["1", "1"]
    assert all(math.isfinite(float(row["train_loss"])) for row in table)
    for name, value in state(folder).items():
        assert value.isfinite().all(), name


def test_what_is_left_out_changes_nothing(by_layer_norm, train_tiny, tmp_path, broken):
    """Every batch is bad: the weights are those of the beginning, and so are the moments."""
    broken([f"s{i % 2}_u{i}" for i in range(10)])
    folder = train_tiny(by_layer_norm(max_epochs=1), tmp_path / "bad")
    checkpoint = torch.load(folder / "last.ckpt", weights_only=False)
    assert checkpoint["optimizer_states"][0]["state"] == {}
    fresh = train_tiny(by_layer_norm(max_epochs=1, lr=1e-30, weight_decay=0.0), tmp_path / "fresh")
    torch.testing.assert_close(checkpoint["state_dict"], state(fresh), atol=0, rtol=0)
    assert int(rows(folder)[0]["skipped"]) >= 2 and rows(folder)[0]["train_loss"] == ""


def test_too_much_left_out_ends_the_training(by_layer_norm, train_tiny, tmp_path, broken):
    """Also where no epoch has so many batches."""
    broken([f"s{i % 2}_u{i}" for i in range(10)], value=float("inf"))
    with pytest.raises(SpeechattnError, match="5 batches had to be skipped.*loss is inf.*s._u"):
        train_tiny(by_layer_norm(max_epochs=9, skip_limit=4), tmp_path)
    assert len(rows(tmp_path / "train")) == 1


# ------------------------------------------------------------------------------ unreadable files


@pytest.fixture
def damaged(tiny_corpus, tmp_path):
    """The tiny corpus with sounds of training cuts damaged; a function that trains on it."""

    def run(config, names, damage):
        data = tmp_path / "data"
        data.mkdir()
        cuts = []
        for cut in CutSet.from_file(tiny_corpus.folder / "cuts_train.jsonl.gz"):
            source = Path(cut.recording.sources[0].source)
            if cut.id in names:
                damage(shutil.copy(source, data / source.name))
                cut.recording.sources[0].source = str(data / source.name)
            cuts.append(cut)
        CutSet.from_cuts(cuts).to_file(data / "cuts.jsonl.gz")
        folder = tiny_corpus.folder
        crops = folder / "crops" if "video" in config["model"] else None
        config = yaml.safe_load(yaml.safe_dump(config))
        return train(
            config, data / "cuts.jsonl.gz", folder / "cuts_dev.jsonl.gz", folder / "tokens",
            tmp_path / "exp", crops=crops,
        )  # fmt: skip

    return run


def cut_short(path):
    Path(path).write_bytes(Path(path).read_bytes()[:60])


def infinite(path):
    import numpy as np
    import soundfile

    wave, rate = soundfile.read(path, dtype="float32")
    wave[7] = np.inf
    soundfile.write(path, wave, rate, format="WAV", subtype="FLOAT")


@pytest.mark.parametrize(
    ("damage", "reason", "workers"),
    [(cut_short, "Error", 2), (infinite, "no finite numbers", 0), (Path.unlink, "Error", 0)],
    ids=["truncated", "infinite", "gone"],
)
def test_a_bad_file_is_reported_and_the_rest_is_learnt(
    tiny_config, damaged, tmp_path, caplog, damage, reason, workers
):
    seen = set()
    config = tiny_config("av", max_epochs=2)
    config["data"]["num_workers"] = workers
    original = SpeechTask.training_step

    def step(self, batch, index):
        seen.update(batch.ids)
        return original(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpeechTask, "training_step", step)
        folder = damaged(config, {"s0_u2"}, lambda path: damage(Path(path)))
    told = [r.message for r in caplog.records if "skipped, s0_u2" in r.message]
    assert len(told) == 1 and reason in told[0]
    assert len(seen) == 7 and "s0_u2" not in seen
    assert [row["unreadable"] for row in rows(folder)] == ["1", "1"]
    assert [row["skipped"] for row in rows(folder)] == ["0", "0"]


def test_joined_recordings_name_the_cut(tiny_config, damaged, caplog):
    config = tiny_config("audio", max_epochs=1)
    config["data"].update(join_seconds=4.0, join_chance=1.0)
    damaged(config, {"s0_u2"}, cut_short)
    assert sum("skipped, s0_u2: " in r.message for r in caplog.records) == 1


def test_without_its_files_training_ends(tiny_config, damaged, tmp_path):
    names = {f"s{i % 2}_u{i}" for i in range(8)}
    with pytest.raises(SpeechattnError, match="utterances of this epoch could not be read"):
        damaged(tiny_config("audio", max_epochs=9, skip_limit=3), names, cut_short)


# ------------------------------------------------------------------------------ memory, options


def test_out_of_memory_says_what_to_do(tiny_config, train_tiny, tmp_path, monkeypatch):
    original = JointLoss.forward

    def forward(self, model, encoded, batch):
        if "s1_u7" in batch.ids:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return original(self, model, encoded, batch)

    monkeypatch.setattr(JointLoss, "forward", forward)
    with pytest.raises(
        SpeechattnError, match=r"utterances padded to 1\.\d s.*s1_u7.*data.batch_sec"
    ):
        train_tiny(tiny_config("video", max_epochs=1), tmp_path)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("training", {"accumulate": 0}, "training.accumulate is 0"),
        ("training", {"ema": 1.0}, "training.ema is 1"),
        ("training", {"lr": 0.0}, "training.lr is 0"),
        ("training", {"skip_limit": -1}, "training.skip_limit is -1"),
        ("data", {"min_seconds": 1.0, "max_seconds": 0.5}, "data.min_seconds 1 .*max_seconds 0.5"),
    ],
)
def test_wrong_values_are_named(tiny_config, train_tiny, tmp_path, section, change, message):
    config = tiny_config("audio")
    config[section].update(change)
    with pytest.raises(ConfigError, match=message):
        train_tiny(config, tmp_path)


def test_a_curriculum_by_length(tiny_config, train_tiny, tmp_path, caplog):
    """Short clips only, then long ones only."""
    seen = []
    original = SpeechTask.training_step

    def step(self, batch, index):
        seen.extend(int(n) / 25 for n in batch.video_lengths)
        return original(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpeechTask, "training_step", step)
        for name, limits in (("a", {"max_seconds": 0.9}), ("b", {"min_seconds": 0.9})):
            config = tiny_config("video", max_epochs=1)
            config["data"].update(limits)
            done = train_tiny(config, tmp_path / name) / "done.json"
            assert json.loads(done.read_text())["epochs"] == 1
            seen.append(name)
    a = seen.index("a")
    assert a and max(seen[:a]) <= 0.9 <= min(seen[a + 1 : -1])
    assert "of 8 cuts shorter than 0.9 s or longer than 30 s left out" in caplog.text


def test_options_are_checked_on_their_own():
    with pytest.raises(ConfigError, match="training.devices is 0"):
        TrainingOptions(devices=0)


def test_logging_level_is_left_alone(tiny_config, train_tiny, tmp_path):
    train_tiny(tiny_config("audio", max_epochs=1), tmp_path)
    assert logging.getLogger("speechattn").level != logging.ERROR
