"""`metrics.csv`: the figures of a training run, a row an epoch."""

import csv
import logging
import time
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

logger = logging.getLogger(__name__)


class EpochTable(Callback):
    """Appends a row of figures to `metrics.csv` after every epoch; a resumed run goes on with it.

    Lightning's own CSV logger starts its file anew on resume.
    """

    columns = (
        "epoch step train_loss train_ctc_loss train_att_loss train_reverse_loss "
        "train_intermediate_loss train_stream_loss train_risk valid_loss valid_ctc_loss "
        "valid_att_loss valid_reverse_loss valid_intermediate_loss valid_stream_loss "
        "train_transducer_loss train_kept_frames valid_transducer_loss valid_kept_frames "
        "valid_error lr skipped unreadable seconds"
    ).split()
    # What the log says of an epoch.
    said = (
        "epoch {epoch}: train loss {train_loss}, valid loss {valid_loss}, "
        "valid error {valid_error} %, {seconds} s"
    )

    def __init__(self, path: Path):
        self.path = path
        self.started = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Take out the rows of epochs that are done again: their checkpoint was not written."""
        if not trainer.is_global_zero or not self.path.exists():
            return
        rows, found = self.read()
        kept = [row for row in rows if int(row.get("epoch") or 0) < trainer.current_epoch]
        if len(kept) < len(rows):
            self.write(kept, found)

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        row = {name: metrics[name] for name in self.columns if name in metrics}
        row = {k: f"{v:.6g}" for k, v in row.items()}
        row["epoch"], row["step"] = trainer.current_epoch, trainer.global_step
        row["lr"] = f"{trainer.optimizers[0].param_groups[0]['lr']:.6g}"
        row["seconds"] = f"{time.monotonic() - self.started:.1f}"
        self.head()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)
        logger.info("%s", self.said.format_map({name: "-" for name in self.columns} | row))

    def head(self) -> None:
        """Make the file; gives one that another version began the columns of this one too."""
        rows: list[dict[str, str]] = []
        if self.path.exists():
            rows, found = self.read()
            if found == self.columns:
                return
            self.columns = [*self.columns, *(name for name in found if name not in self.columns)]
            if found == self.columns:
                return
        self.write(rows, self.columns)

    def read(self) -> tuple[list[dict[str, str]], list[str]]:
        """Rows and columns of the file."""
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            return list(reader), list(reader.fieldnames or ())

    def write(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        """Replace the file by a whole one."""
        part = self.path.with_name(self.path.name + ".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({k: v for k, v in row.items() if k is not None} for row in rows)
        part.replace(self.path)
