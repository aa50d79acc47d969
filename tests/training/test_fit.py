"""Training end to end: what it writes, resuming, averaging."""

import csv
import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

from speechattn.data.augment import RandomCrop
from speechattn.data.batches import dataset
from speechattn.data.batches.dataset import SpeechDataset
from speechattn.errors import ConfigError
from speechattn.model.directory import load_model, read_config, read_meta
from speechattn.training import average
from speechattn.training.averaging import average_weights, best_checkpoints
from speechattn.training.options import TrainingOptions
from speechattn.training.task import SpeechTask
from speechattn.training.trainer import make_trainer


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def last(folder: Path) -> dict:
    return torch.load(folder / "last.ckpt", weights_only=False)


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimiser, schedule, loops and figures are those of the other run, to the bit."""
    first, second = last(one), last(other)
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(first[key], second[key], atol=0, rtol=0)
    for key in ("epoch", "global_step"):
        assert first[key] == second[key]
    figures = [[{k: v for k, v in r.items() if k != "seconds"} for r in rows(x)]
               for x in (one, other)]  # fmt: skip
    assert figures[0] == figures[1]
    assert [p.name for p in best_checkpoints(one)] == [p.name for p in best_checkpoints(other)]


@pytest.fixture
def stop_in(monkeypatch):
    """Stops training with `error`, once: as the n-th clip is loaded, or in the n-th step."""

    def arm(n: int, error: BaseException) -> None:
        if isinstance(error, Exception):  # which loading would only report
            step, steps = SpeechTask.training_step, [n]

            def fail(self, batch, index):
                steps[0] -= 1
                if steps[0] == -1:
                    raise error
                return step(self, batch, index)

            monkeypatch.setattr(SpeechTask, "training_step", fail)
            return
        original, left = SpeechDataset.__getitem__, [n]

        def load(self, index):
            left[0] -= isinstance(self.video_transforms[0], RandomCrop)  # not in validation
            if left[0] == -1:
                raise error
            return original(self, index)

        monkeypatch.setattr(SpeechDataset, "__getitem__", load)

    return arm


@pytest.fixture(scope="module")
def straight(tiny_config, train_tiny, tmp_path_factory):
    """Two epochs of sound and lips in one go."""
    return train_tiny(tiny_config(), tmp_path_factory.mktemp("straight"))


def test_what_training_writes(tiny_config, train_tiny, tmp_path):
    folder = train_tiny(tiny_config(max_epochs=3), tmp_path)
    assert folder == tmp_path / "train"
    table = rows(folder)
    assert [r["epoch"] for r in table] == ["0", "1", "2"]
    steps = [int(r["step"]) for r in table]
    assert steps[0] >= 2 and steps[2] > steps[1] > steps[0]
    for row in table:
        # Not of this model.
        parts = ("reverse", "intermediate", "risk", "transducer", "kept_frames")
        absent = {n for n in row for part in parts if part in n}
        assert all(bool(row[name]) != (name in absent) for name in row), row
        total = 0.3 * float(row["train_ctc_loss"]) + 0.7 * float(row["train_att_loss"])
        total += 0.3 * float(row["train_stream_loss"])
        assert float(row["train_loss"]) == pytest.approx(total, rel=1e-3)
        assert float(row["valid_error"]) >= 0
    assert float(table[2]["train_loss"]) < float(table[0]["train_loss"])
    assert float(table[2]["lr"]) < float(table[0]["lr"]) <= 3e-3
    kept = best_checkpoints(folder)
    assert len(kept) == 2
    best = min(float(r["valid_error"]) for r in table)
    assert f"error={best:.3f}" in kept[0].name
    assert (folder / "last.ckpt").exists()
    assert json.loads((folder / "done.json").read_text()) == {"epochs": 3, "steps": steps[2]}
    assert yaml.safe_load((folder / "config.yaml").read_text())["training"]["max_epochs"] == 3
    assert list((folder / "logs").glob("*/metrics.csv"))
    moments = last(folder)["optimizer_states"][0]["state"]
    assert len(moments) == len(list(last(folder)["state_dict"])) - sum(
        "running" in n or "num_batches" in n for n in last(folder)["state_dict"]
    )


def test_every_epoch_is_another(tiny_config, train_tiny, tmp_path, monkeypatch):
    """Other batches, other crops of the same clips."""
    seen = {0: {}, 1: {}}
    order = {0: [], 1: []}
    original = SpeechTask.training_step

    def step(self, batch, index):
        epoch = self.trainer.current_epoch
        order[epoch].append(batch.ids)
        for name, clip, n in zip(batch.ids, batch.video, batch.video_lengths, strict=True):
            seen[epoch][name] = clip[:n].clone()
        return original(self, batch, index)

    monkeypatch.setattr(SpeechTask, "training_step", step)
    train_tiny(tiny_config(), tmp_path)
    assert order[0] != order[1]
    assert seen[0].keys() == seen[1].keys() and len(seen[0]) == 8
    assert sum(torch.equal(seen[0][name], seen[1][name]) for name in seen[0]) < 4


def test_it_learns(tiny_config, train_tiny, tmp_path):
    table = rows(train_tiny(tiny_config("audio", max_epochs=8, lr=1e-2), tmp_path))
    assert float(table[-1]["train_loss"]) < 0.7 * float(table[0]["train_loss"])


@pytest.mark.parametrize(
    ("n", "error"),
    [(12, KeyboardInterrupt()), (4, RuntimeError("the driver is gone"))],
    ids=["interrupted", "crashed"],
)
def test_resumed_equals_straight(
    tiny_config, train_tiny, tmp_path, stop_in, monkeypatch, straight, n, error
):
    """Stopped in the second epoch, to the bit; dropout and augmentation are on."""
    handler = signal.getsignal(signal.SIGINT)
    stop_in(n, error)
    with pytest.raises(type(error)):
        train_tiny(tiny_config(), tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "train" / "done.json").exists()
    assert last(tmp_path / "train")["epoch"] == 0
    assert_same_run(train_tiny(tiny_config(), tmp_path), straight)


def test_resumed_in_another_place(tiny_config, train_tiny, tmp_path, stop_in):
    """A folder that was moved goes on writing the checkpoint that is read at the next start."""
    config = tiny_config("video", max_epochs=3)
    for place, n in (("a", 12), ("b", 12)):
        if place == "b":
            shutil.move(tmp_path / "a", tmp_path / "b")
        stop_in(n, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train_tiny(config, tmp_path / place)
    folder = tmp_path / "b" / "train"
    assert [p.name for p in folder.glob("last*")] == ["last.ckpt"]
    assert last(folder)["epoch"] == 1
    assert [r["epoch"] for r in rows(folder)] == ["0", "1"]


def test_finished_training_is_not_repeated(tiny_config, train_tiny, tmp_path):
    folder = train_tiny(tiny_config("video"), tmp_path)
    before, table = last(folder)["state_dict"], rows(folder)
    train_tiny(tiny_config("video"), tmp_path)
    torch.testing.assert_close(last(folder)["state_dict"], before, atol=0, rtol=0)
    assert rows(folder) == table
    # More epochs are asked for: it goes on.
    train_tiny(tiny_config("video", max_epochs=3), tmp_path)
    assert [r["epoch"] for r in rows(folder)] == ["0", "1", "2"]


def test_another_model_cannot_go_on(tiny_config, train_tiny, tmp_path, caplog):
    train_tiny(tiny_config("video", max_epochs=1), tmp_path)
    other = tiny_config("video", max_epochs=2)
    other["model"]["ctc_dropout"] = 0.5
    with pytest.raises(ConfigError, match="begun with another `model`"):
        train_tiny(other, tmp_path)
    caplog.clear()
    train_tiny(tiny_config("video", max_epochs=1), tmp_path)
    assert "other settings" not in caplog.text
    train_tiny(tiny_config("video", max_epochs=2), tmp_path)
    assert "other settings than before in: training" in caplog.text


def test_seed_decides(tiny_config, train_tiny, tmp_path):
    runs = [
        last(train_tiny(tiny_config("video", max_epochs=1, seed=s), tmp_path / str(i)))
        for i, s in enumerate((5, 5, 6))
    ]
    weights = [r["state_dict"]["model.ctc.weight"] for r in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_accumulation_and_half_precision(tiny_config, train_tiny, tmp_path):
    one = rows(train_tiny(tiny_config("audio", max_epochs=1), tmp_path / "1"))[0]
    config = tiny_config("audio", max_epochs=1, accumulate=2, precision="bf16", schedule="noam")
    two = rows(train_tiny(config, tmp_path / "2"))[0]
    assert int(two["step"]) == (int(one["step"]) + 1) // 2
    assert float(two["train_loss"]) == pytest.approx(float(one["train_loss"]), rel=0.3)


def test_early_stopping(tiny_config, train_tiny, tmp_path):
    """With a learning rate of nothing the error never improves."""
    config = tiny_config("audio", max_epochs=9, patience=2, lr=1e-12, weight_decay=0.0)
    assert len(rows(train_tiny(config, tmp_path))) == 3


def test_killed_run_resumes(tiny_config, train_tiny, tmp_path, monkeypatch):
    """SIGKILL in the second epoch, then on to the end in this process."""
    config = tiny_config("audio")
    exp, other = tmp_path / "killed", tmp_path / "straight"
    with monkeypatch.context() as patch:
        load = dataset.load_audio

        def slow(*arguments):
            time.sleep(0.3 * (exp / "train" / "last.ckpt").exists())
            return load(*arguments)

        patch.setattr(dataset, "load_audio", slow)
        # A fork: a fresh Python takes long to import torch.
        child = multiprocessing.get_context("fork").Process(target=train_tiny, args=(config, exp))
        child.start()
    deadline = time.monotonic() + 120
    while not (exp / "train" / "last.ckpt").exists():
        assert child.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)  # into the second epoch
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (exp / "train" / "done.json").exists()
    assert_same_run(train_tiny(config, exp), train_tiny(config, other))


# ------------------------------------------------------------------------------ averaging


@pytest.fixture
def checkpoints(tmp_path, tiny_config, tiny_corpus):
    """Checkpoints of random models, named as training names them."""
    from speechattn.data.tokenizers import Tokenizer
    from speechattn.model.directory import build_model

    size = Tokenizer.load(tiny_corpus.folder / "tokens").vocab_size
    folder = tmp_path / "exp" / "train"
    folder.mkdir(parents=True)
    states = {}
    for epoch, error in ((3, "9.500"), (4, "10.250"), (12, "9.500"), (7, "100.000")):
        torch.manual_seed(epoch)
        state = build_model(tiny_config("audio")["model"], size).state_dict()
        for name in state:
            if name.endswith("num_batches_tracked"):
                state[name] = torch.tensor(epoch)
        path = folder / f"epoch={epoch:03d}-error={error}.ckpt"
        saved = {f"model.{k}": v for k, v in state.items()}
        saved["loss.transducer.batches"] = torch.tensor(epoch)
        torch.save({"state_dict": saved}, path)
        states[path.name] = state
    (folder / "last.ckpt").touch()
    (folder / "epoch=000-error=1.000.ckpt.part").touch()
    return folder, states


def test_best_checkpoints(checkpoints):
    folder, _ = checkpoints
    names = [path.name.removesuffix(".ckpt") for path in best_checkpoints(folder)]
    assert names == [
        "epoch=012-error=9.500", "epoch=003-error=9.500", "epoch=004-error=10.250",
        "epoch=007-error=100.000",
    ]  # fmt: skip
    assert best_checkpoints(folder / "nowhere") == []


@pytest.mark.parametrize("best", [1, 3, 9])
def test_average_is_the_mean(checkpoints, tiny_config, tiny_corpus, best):
    folder, states = checkpoints
    config = {**tiny_config("audio"), "roi": {"size": 90}}
    path = average(
        config, folder.parent, tiny_corpus.folder / "tokens", best, meta={"synthetic": True}
    )
    assert path == folder.parent / "model"
    taken = [states[p.name] for p in best_checkpoints(folder)[:best]]
    found = load_model(path).state_dict()
    assert found.keys() == taken[0].keys()
    for name, value in found.items():
        if value.is_floating_point():
            expected = torch.stack([s[name].double() for s in taken]).mean(0).float()
            torch.testing.assert_close(value, expected, atol=1e-7, rtol=1e-6)
            assert value.dtype == torch.float32
        else:
            assert value == 12
    meta = read_meta(path)
    assert meta["averaged"] == [p.name for p in best_checkpoints(folder)[:best]]
    assert meta["synthetic"] is True and meta["modalities"] == ["audio"]
    assert read_config(path).keys() == {"model", "search", "roi"}


def test_average_of_one_is_itself(checkpoints):
    folder, states = checkpoints
    path = folder / "epoch=004-error=10.250.ckpt"
    found = average_weights([path])
    torch.testing.assert_close(found, states[path.name], atol=0, rtol=0)


def test_nothing_to_average(tmp_path, tiny_config, tiny_corpus):
    with pytest.raises(ConfigError, match="train first"):
        average(tiny_config(), tmp_path, tiny_corpus.folder / "tokens")


# ------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainig": {"max_epochs": 1}}, "trainig"),
        ({"training": {"max_epoch": 1}}, "training.*max_epoch"),
        ({"loss": {"ctc": 1}}, "loss.*ctc"),
        ({"data": {"batch_frames": 1}}, "data.*batch_frames"),
        (
            {"search": {"class_path": "JointSearch", "init_args": {"beam": 1}}},
            "beam: no such option",
        ),
        ({"search": {"class_path": "JointSearch", "init_args": {"beam_size": 0}}}, "beam_size"),
        ({"model": None}, "model"),
        ({"roi": {"sise": 90}}, "roi.*sise"),
        ({"training": 3}, "training"),
    ],
)
def test_wrong_configuration_is_found_before_training(
    tiny_config, train_tiny, tmp_path, change, message
):
    with pytest.raises(ConfigError, match=message):
        train_tiny({**tiny_config("audio"), **change}, tmp_path)
    assert not list((tmp_path / "train").glob("*.ckpt"))


def test_empty_sections_are_defaults(tiny_config, tmp_path, train_tiny):
    config = tiny_config("audio", max_epochs=1)
    config.update(loss=None, search=None, roi=None)
    assert len(rows(train_tiny(config, tmp_path))) == 1


def test_trained_with_noise(tiny_config, train_tiny, tiny_corpus, tmp_path, caplog):
    config = tiny_config("audio", max_epochs=1)
    config["data"]["audio_transforms"] = [
        {"class_path": "speechattn.data.augment.AddNoise", "init_args": {"snr_db": [-5, 20]}}
    ]
    losses = {}
    for name, noise in (("clean", None), ("noisy", str(tiny_corpus.folder / "noise.wav"))):
        config["data"]["noise"] = noise
        (row,) = rows(train_tiny(config, tmp_path / name))
        losses[name] = row["train_loss"]
        assert ("without added noise" in caplog.text) == (name == "clean")
        caplog.clear()
    assert losses["clean"] != losses["noisy"]


@pytest.mark.parametrize("name", ["CSVLogger", "TensorBoardLogger"])
def test_any_logger_of_lightning(name, tiny_config, train_tiny, tmp_path):
    if name == "TensorBoardLogger":
        pytest.importorskip("tensorboard")
    path = f"lightning.pytorch.loggers.{name}"
    arguments = {"save_dir": str(tmp_path / "own"), "name": "run"}
    config = tiny_config("audio", max_epochs=1)
    config["training"]["logger"] = {"class_path": path, "init_args": arguments}
    folder = train_tiny(config, tmp_path)
    written = [path.name for path in (tmp_path / "own" / "run" / "version_0").iterdir()]
    assert any(file == "metrics.csv" or file.startswith("events.") for file in written)
    assert len(rows(folder)) == 1 and not (folder / "logs").exists()


def test_tensorboard_is_imported_by_nobody():
    code = "import sys, speechattn.training; print('tensorboard' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_trainer_of_several_devices(monkeypatch, tmp_path):
    made = {}
    monkeypatch.setattr(L, "Trainer", lambda **arguments: made.update(arguments))
    make_trainer(TrainingOptions(devices=2, precision="bf16", clip=1.0), tmp_path)
    assert made["strategy"] in L.pytorch.strategies.StrategyRegistry.available_strategies()
    assert "ddp" in made["strategy"] and made["use_distributed_sampler"] is False
    assert (made["precision"], made["gradient_clip_val"]) == ("bf16-mixed", 1.0)
