"""Several real processes: they learn what one does, and go on after a kill as if there was none."""

import csv
import signal
from pathlib import Path

import pytest
import torch

from speechattn.data.batches.sampler import PaddedFrameBatches

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tiny_config, tiny_model):
    """Sound alone, an encoder without batch normalisation, no dropout; epochs of four batches."""
    config = tiny_config("audio", max_epochs=10, lr=3e-3, warmup_steps=2)
    config["model"] = tiny_model("audio", "e_branchformer")
    config["loss"] = {}
    config["data"]["batch_seconds"] = 2.2
    return config


def rows(exp: Path) -> list[dict[str, str]]:
    with (exp / "train" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(exp: Path) -> dict[str, torch.Tensor]:
    found = torch.load(exp / "train" / "last.ckpt", weights_only=False)["state_dict"]
    # Not biases of keys: their gradient is nothing but rounding, which AdamW makes large.
    return {k: v for k, v in found.items() if not k.endswith(("key_value.bias", "project.bias"))}


def merged(sampler: PaddedFrameBatches, count: int) -> list[list[int]]:
    """The batches that one process has to have, to see in a step what several see."""
    ranks = [
        PaddedFrameBatches(sampler.lengths, sampler.max_padded, seed=sampler.seed, rank=rank,
                           world_size=count)
        for rank in range(count)
    ]  # fmt: skip
    for rank in ranks:
        rank.set_epoch(sampler.epoch)
    return [sum(batches, []) for batches in zip(*(r.batches() for r in ranks), strict=True)]


@pytest.fixture
def merge(monkeypatch):
    """Give one process the batches of two."""
    original = PaddedFrameBatches.batches

    def batches(self):
        if self.world_size == 1 and self.shuffle and not merging:
            merging.append(self)
            try:
                return merged(self, 2)
            finally:
                merging.clear()
        return original(self)

    merging = []
    monkeypatch.setattr(PaddedFrameBatches, "batches", batches)
    monkeypatch.setattr(
        PaddedFrameBatches, "__len__", lambda self: len(self.batches()) - self.position
    )


def assert_close(one: Path, other: Path, tolerance: float) -> None:
    first, second = rows(one), rows(other)
    assert len(first) == len(second)
    for mine, theirs in zip(first, second, strict=True):
        for name in mine:
            if name.endswith("loss") and mine[name]:
                assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=tolerance), name
    torch.testing.assert_close(weights(one), weights(other), atol=tolerance, rtol=tolerance)


def test_two_processes_learn_what_one_does(
    config, train_processes, train_tiny, tmp_path, monkeypatch, merge
):
    """Twenty steps of the same utterances; the ranks' batches are of different sizes."""
    two, one = tmp_path / "two", tmp_path / "one"
    assert train_processes(config, two) == [0, 0]
    train_tiny(config, one)
    assert int(rows(one)[-1]["step"]) >= 20
    assert_close(two, one, 1e-3)
    lines = [(two / f"batches{rank}").read_text().splitlines() for rank in (0, 1)]
    sizes = [[len(line.split()) - 2 for line in each] for each in lines]
    assert sum(a != b for a, b in zip(*sizes, strict=True)) >= 3
    # Each epoch reads each utterance once.
    for epoch in range(10):
        read = [name for each in lines for line in each if line.split()[0] == str(epoch)
                for name in line.split()[2:]]  # fmt: skip
        assert len(read) == len(set(read)) == 8
    # Only the first process speaks.
    assert "epoch 9" in (two / "log0").read_text()
    assert "epoch" not in (two / "log1").read_text()


def test_killed_processes_go_on(config, train_processes, tmp_path):
    """SIGKILL of one within an epoch: the same data, the same weights as without, to the bit."""
    config["training"].update(max_epochs=3, save_steps=1)
    config["model"]["ctc_dropout"] = 0.2  # its draws have to come back too
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    assert train_processes(config, straight) == [0, 0]
    steps = int(rows(straight)[0]["step"])
    at = 2 * steps - 1  # the last step of the second epoch

    codes = train_processes(config, killed, kill_at=at)
    assert codes[1] == -signal.SIGKILL and codes[0] != 0
    reached = torch.load(killed / "train" / "last.ckpt", weights_only=False)
    assert (reached["epoch"], reached["global_step"]) == (1, at)
    assert not (killed / "train" / "done.json").exists()
    assert train_processes(config, killed) == [0, 0]
    for rank in (0, 1):
        read = (killed / f"batches{rank}").read_text().splitlines()
        if rank == 0:  # it may have begun the step that the other did not
            read = list(dict.fromkeys(read))
        assert read == (straight / f"batches{rank}").read_text().splitlines()
    torch.testing.assert_close(weights(killed), weights(straight), atol=0, rtol=0)
    figures = [[{k: v for k, v in r.items() if k != "seconds"} for r in rows(exp)]
               for exp in (killed, straight)]  # fmt: skip
    assert figures[0] == figures[1]


def test_one_process_leaves_a_batch_out(tiny_config, train_processes, tmp_path):
    """The others go on with it; the first says whose it was. Sound, lips and an idle decoder."""
    config = tiny_config("av", max_epochs=2)
    config["model"]["decoder"]["class_path"] = "speechattn.decoders.BidirectionalDecoder"

    assert train_processes(config, tmp_path, spoil="s0_u4") == [0, 0]
    assert [row["skipped"] for row in rows(tmp_path)] == ["1", "1"]
    logs = [(tmp_path / f"log{rank}").read_text() for rank in (0, 1)]
    assert sum("skipped, its loss is nan" in line for line in logs[0].splitlines()) == 2
    assert "s0_u4" in logs[0] and "skipped" not in logs[1]
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
