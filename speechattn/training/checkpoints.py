"""Checkpoints that are whole or not there, within an epoch too; weights averaged over steps."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside the last one, then puts it in its place.

    Lightning writes it into the system's folder for temporary files and moves it: from another
    disk that is a copy, which a kill leaves half done in place of the only checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


class LastCheckpoint(Checkpoint):
    """Writes the checkpoint that a run is resumed from, after each epoch and within it.

    Lightning's `save_last` leaves out epochs that are not among the best. In the list of callbacks
    it has to come after the one that keeps the best, which it saves the state of.

    Args:
        path: of the checkpoint.
        every: optimiser steps; 0 writes after epochs only. Not after the last batch of an epoch:
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
        self.saved = trainer.global_step  # else the next would be within the next step
        trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, int]:
        return {"saved": self.saved}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.saved = state_dict["saved"]


class MovingAverage(WeightAveraging):
    """Weights as an exponential moving average over steps, for validation and checkpoints.

    Training goes on from the weights themselves, which checkpoints keep as `current_model_state`.
    The share that a step keeps of the average grows from a tenth to `decay` as (1 + n) / (10 + n),
    so that the first weights are soon forgotten.

    Args:
        decay: share of the average that a step keeps, below 1.
    """

    def __init__(self, decay: float):
        def follow(averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
            n = int(count)
            share = min(decay, (1 + n) / (10 + n))
            if averages[0].is_floating_point():
                get_ema_multi_avg_fn(share)(averages, weights, count)
            else:  # counters of batches
                for average, weight in zip(averages, weights, strict=True):
                    average.copy_(weight)

        super().__init__(multi_avg_fn=follow)

    def on_fit_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        # It was made before the model came to its device.
        self._average_model.to(task.device)
