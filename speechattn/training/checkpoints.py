"""Checkpoints that are written whole, within an epoch too; weights averaged over steps."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from speechattn.files import replacing


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside the last one, then replaces it.

    Lightning writes into the system's temporary folder and moves the file: from another disk that
    is a copy, and a kill leaves half of it in place of the only checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        with replacing(path) as part, part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


class LastCheckpoint(Checkpoint):
    """Writes the checkpoint that a run is resumed from, after each epoch and within it.

    Lightning's `save_last` omits epochs that are not among the best. In the list of callbacks it
    has to come after the one that keeps the best, whose state it saves.

    Args:
        path: of the checkpoint.
        every: optimiser steps; 0 for after epochs only. Not after the last batch of an epoch, when
            validation is still to come.
    """

    def __init__(self, path: Path, every: int = 0):
        self.path, self.every = path, every
        self.saved = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        step = trainer.global_step
        if not self.every or step % self.every or step == self.saved or trainer.is_last_batch:
            return
        self.saved = step
        trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.saved = trainer.global_step  # else another would be written within the next step
        trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, int]:
        return {"saved": self.saved}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.saved = state_dict["saved"]


class MovingAverage(WeightAveraging):
    """An exponential moving average of the weights over steps, for validation and checkpoints.

    Training goes on from the weights themselves, which checkpoints keep as `current_model_state`.
    The share of the average that step n keeps grows as (1 + n) / (10 + n) up to `decay`, so that
    the initial weights are soon forgotten.

    Args:
        decay: share of the average that a step keeps, below 1.
    """

    def __init__(self, decay: float):
        def update(averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
            n = int(count)
            share = min(decay, (1 + n) / (10 + n))
            if averages[0].is_floating_point():
                get_ema_multi_avg_fn(share)(averages, weights, count)
            else:  # counters of batches
                for average, weight in zip(averages, weights, strict=True):
                    average.copy_(weight)

        super().__init__(multi_avg_fn=update)

    def on_fit_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        # It was made before the model was on its device.
        self._average_model.to(task.device)
