"""`metrics.csv`: the figures of a training run, a row an epoch."""

import csv
import logging
import time
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from speechattn.files import replacing

logger = logging.getLogger(__name__)


class EpochTable(Callback):
    """Appends a row to `metrics.csv` after every epoch, and logs it; a resumed run continues it.

    Columns and log message are those of the task (`BaseTask.columns`, `BaseTask.summary`).
    Lightning's own CSV logger starts a new file on resume.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.started = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Remove the rows of epochs that are done again: their checkpoint was not written."""
        self.columns = list(task.columns)
        if not trainer.is_global_zero or not self.path.exists():
            return
        rows, columns = self.read()
        kept = [row for row in rows if int(row.get("epoch") or 0) < trainer.current_epoch]
        if len(kept) < len(rows):
            self.write(kept, columns)

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        row = {k: f"{float(metrics[k]):.6g}" for k in self.columns if k in metrics}
        row["epoch"], row["step"] = trainer.current_epoch, trainer.global_step
        row["lr"] = f"{trainer.optimizers[0].param_groups[0]['lr']:.6g}"
        row["seconds"] = f"{time.monotonic() - self.started:.1f}"
        self.head()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)
        logger.info("%s", task.summary.format_map(dict.fromkeys(self.columns, "-") | row))

    def head(self) -> None:
        """Create the file, or add columns that a file of another version lacks."""
        rows: list[dict[str, str]] = []
        if self.path.exists():
            rows, columns = self.read()
            self.columns = [*self.columns, *(name for name in columns if name not in self.columns)]
            if columns == self.columns:
                return
        self.write(rows, self.columns)

    def read(self) -> tuple[list[dict[str, str]], list[str]]:
        """Return rows and columns of the file."""
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            return list(reader), list(reader.fieldnames or ())

    def write(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        """Replace the file by a whole one."""
        with replacing(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({k: v for k, v in row.items() if k is not None} for row in rows)
