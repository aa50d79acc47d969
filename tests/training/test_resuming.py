"""What a resumed run finds: the table of its epochs, models to start from, a changed loss."""

import csv
import logging
from pathlib import Path

import pytest

from speechattn.errors import ConfigError
from speechattn.training.table import EpochTable
from speechattn.training.task import SpeechTask


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_table_of_other_columns_goes_on(tiny_config, train_tiny, tmp_path, caplog):
    """A run that an earlier version began, with fewer columns, with one of its own."""
    folder = train_tiny(tiny_config("audio", max_epochs=1), tmp_path)
    (first,) = rows(folder)
    kept = [name for name in first if "reverse" not in name and "stream" not in name]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*kept, "old"], extrasaction="ignore")
        writer.writeheader()
        writer.writerow({**first, "old": "7"})
    train_tiny(tiny_config("audio", max_epochs=3), tmp_path)
    table = rows(folder)
    assert [row["epoch"] for row in table] == ["0", "1", "2"]
    assert table[0] == {**first, "old": "7"}
    assert list(table[2]) == [*first, "old"]
    for row in table:
        assert float(row["valid_error"]) >= 0 and float(row["lr"]) < 1 < float(row["valid_loss"])
    assert not list(folder.glob(".*.part*"))


def test_an_empty_table_gets_its_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    path.touch()
    table = EpochTable(path)
    table.columns = list(SpeechTask.columns)
    table.head()
    assert path.read_text().strip().split(",") == list(SpeechTask.columns)


def test_an_epoch_that_is_done_again_has_one_row(tiny_config, train_tiny, tmp_path):
    """Killed between the table's row and the checkpoint."""
    folder = train_tiny(tiny_config("audio", max_epochs=1), tmp_path)
    with (folder / "metrics.csv").open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows(folder)[0]))
        writer.writerow({**rows(folder)[0], "epoch": "1", "train_loss": "7e7"})
    train_tiny(tiny_config("audio", max_epochs=3), tmp_path)
    assert [row["epoch"] for row in rows(folder)] == ["0", "1", "2"]
    assert all(float(row["train_loss"]) < 1e4 for row in rows(folder))


def test_models_to_start_from_are_for_the_start(tiny_config, train_tiny, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = tiny_config("audio", max_epochs=1)
    before = (train_tiny(config, tmp_path) / "last.ckpt").read_bytes()
    folder = train_tiny(config, tmp_path, init=["a model that is gone"])
    assert "--init is only for the start of a run" in caplog.text
    assert (folder / "last.ckpt").read_bytes() == before


def test_a_loss_that_does_not_fit_leaves_a_run_as_it_was(tiny_config, train_tiny, tmp_path):
    config = tiny_config("audio", max_epochs=1)
    folder = train_tiny(config, tmp_path)
    before = (folder / "config.yaml").read_text()
    config["loss"] = {"reverse_weight": 0.3}
    with pytest.raises(ConfigError, match="loss.reverse_weight"):
        train_tiny(config, tmp_path)
    assert (folder / "config.yaml").read_text() == before
