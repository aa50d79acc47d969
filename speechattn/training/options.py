"""How a model is trained."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch.loggers import Logger

from speechattn.config import build
from speechattn.errors import ConfigError


@dataclass(frozen=True)
class TrainingOptions:
    """Optimiser, schedule, stopping, what is kept, and on what it runs.

    Attributes:
        max_epochs: passes over the training data.
        lr: highest learning rate.
        schedule: 'cosine' falls from `lr` to a hundredth of it at the last step; 'noam' falls with
            the inverse square root of the step.
        warmup_steps: optimiser steps of linear rise to `lr`.
        betas: AdamW's averaging constants.
        weight_decay: AdamW's, on matrices and kernels; biases and norms have none.
        accumulate: batches a step, of each process.
        clip: largest norm of the gradient; 0 for any.
        precision: 'bf16' and 'fp16' are mixed precision.
        logger: any of Lightning's loggers by its `class_path`; None for a CSV file.
        freeze: parts that keep the weights they start with, by the beginning of their names:
            `streams.`, `streams.video.frontend.`; they run as in evaluation.
        ema: validate and keep a moving average of the weights, of which each step keeps this share
            (0.999, 0.9999), less in the first steps; 0 for the weights themselves.
        keep: how many checkpoints of the lowest validation error are kept, to be averaged.
        save_steps: optimiser steps from one checkpoint within an epoch to the next; 0 for after
            epochs only.
        patience: epochs without a better validation error before training stops; 0 for never.
        skip_limit: batches that may be skipped, in an epoch or in a row, before training stops:
            those without a finite loss, or of which nothing can be read.
        seed: of initial weights, batches and augmentation.
        threads: of the CPU; 0 leaves torch's choice.
        accelerator: 'auto' takes a GPU where there is one.
        devices: accelerators or CPU processes a node; more than one trains with DDP. Under torchrun
            and srun omit `devices` and `nodes`: the processes started are used.
        nodes: machines.
        find_unused: whether DDP looks for unused weights in each step; None: where chance or the
            loss leaves weights out (see `processes.leaves_out`).
    """

    max_epochs: int = 50
    lr: float = 1e-3
    schedule: Literal["cosine", "noam"] = "cosine"
    warmup_steps: int = 500
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    accumulate: int = 1
    clip: float = 5.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    logger: Logger | None = None
    freeze: tuple[str, ...] = ()
    ema: float = 0.0
    keep: int = 5
    save_steps: int = 1000
    patience: int = 0
    skip_limit: int = 50
    seed: int = 0
    threads: int = 0
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    nodes: int = 1
    find_unused: bool | None = None

    def __post_init__(self) -> None:
        for name in ("accumulate", "devices", "nodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} is {getattr(self, name)}; at least 1")
        for name in ("clip", "save_steps", "skip_limit", "patience", "warmup_steps", "threads"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"training.{name} is {getattr(self, name)}; 0 or more")
        if not self.lr > 0.0:
            raise ConfigError(f"training.lr is {self.lr:g}; above 0")
        if not 0.0 <= self.ema < 1.0:
            raise ConfigError(f"training.ema is {self.ema:g}; from 0 up to 1, as 0.999")


def read_training_options(config: Mapping[str, Any], allow: Iterable[str] = ()) -> TrainingOptions:
    """Read the section `training` of a configuration, in which Lightning's loggers are allowed."""
    section = config.get("training") or {}
    return build(TrainingOptions, section, "training", (*allow, "lightning"))
