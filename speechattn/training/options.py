"""How a model is trained."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingOptions:
    """Optimiser, schedule, stopping and what is kept.

    Attributes:
        max_epochs: passes over the training data.
        lr: highest learning rate.
        schedule: 'cosine' falls from `lr` to a hundredth of it at the last step; 'noam' falls with
            the inverse square root of the step.
        warmup_steps: optimiser steps of linear rise to `lr`.
        betas: AdamW's averaging constants.
        weight_decay: AdamW's, on matrices and kernels; biases and norms have none.
        accumulate: batches a step.
        clip: largest norm of the gradient.
        precision: 'bf16' and 'fp16' are mixed precision.
        freeze: parts that keep the weights they start with, by the beginning of their names:
            `streams.`, `streams.video.frontend.`; they run as in evaluation.
        keep: checkpoints with the lowest validation error that are kept, and averaged after.
        patience: epochs without a better validation error before training stops; 0 never does.
        seed: of initial weights, batches and augmentation.
        threads: of the CPU; 0 leaves torch's choice.
        devices: accelerators or CPU processes a node; more than one trains with DDP.
        nodes: machines.
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
    freeze: tuple[str, ...] = ()
    keep: int = 5
    patience: int = 0
    seed: int = 0
    threads: int = 0
    devices: int = 1
    nodes: int = 1
