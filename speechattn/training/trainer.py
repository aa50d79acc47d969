"""What every training run does: the trainer of its options, a folder, going on where it stopped."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger

from speechattn.config import read_yaml
from speechattn.errors import ConfigError
from speechattn.files import write_text
from speechattn.training.base_task import BaseTask
from speechattn.training.checkpoints import LastCheckpoint, MovingAverage, WholeFiles
from speechattn.training.options import TrainingOptions
from speechattn.training.processes import is_first, processes
from speechattn.training.table import EpochTable

logger = logging.getLogger(__name__)
# Lightning turns its own messages on when it is imported: advertisements, what was found on the
# machine. Warnings stay, but for those about resuming and about names that torch will change.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
warnings.filterwarnings("ignore", message=".*does not have many workers")
warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
warnings.filterwarnings("ignore", message=".*have no `validation_step`")

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
LAST = "last.ckpt"


def seed(options: TrainingOptions) -> None:
    """Set the seed and the number of threads."""
    if options.threads:
        torch.set_num_threads(options.threads)
    L.seed_everything(options.seed, workers=True, verbose=False)


def check_resumed(folder: Path, config: dict[str, Any], fixed: Sequence[str] = ("model",)) -> None:
    """Check that a configuration may resume what an earlier one began in `folder`.

    Raises:
        ConfigError: one of the sections `fixed` differs. Other changes are only reported.
    """
    if not (folder / LAST).exists() or not (folder / "config.yaml").exists():
        return
    before = read_yaml(folder / "config.yaml")
    config = yaml.safe_load(yaml.safe_dump(config))  # as it would be read back
    changed = [name for name in {**before, **config} if before.get(name) != config.get(name)]
    for name in fixed:
        if name in changed:
            advice = "choose another folder, or remove it"
            raise ConfigError(f"{folder} was begun with another `{name}`; {advice}")
    if changed:
        logger.warning("going on with other settings than before in: %s", ", ".join(changed))


def make_trainer(
    options: TrainingOptions,
    folder: Path,
    *,
    find_unused: bool = True,
    save_steps: int = 0,
    validate: bool = True,
) -> L.Trainer:
    """Make the Lightning trainer that the options describe.

    Args:
        options: see there.
        folder: of checkpoints and tables.
        find_unused: see `TrainingOptions`.
        save_steps: steps from one checkpoint within an epoch to the next; 0 for none within.
        validate: validate and log by step; else only train, for models that nobody keeps.
    """
    devices, nodes, environment = processes(options)
    callbacks: list[Callback] = [
        LastCheckpoint(folder / LAST, save_steps),
        EpochTable(folder / "metrics.csv"),
    ]
    if validate:
        best = ModelCheckpoint(
            folder,
            filename="epoch={epoch:03d}-error={valid_error:.3f}",
            auto_insert_metric_name=False,
            monitor="valid_error",
            save_top_k=options.keep,
            # Else an epoch that is done again is kept twice, the second as -v1.ckpt.
            enable_version_counter=False,
        )
        callbacks = [best, *callbacks, LearningRateMonitor("step")]
    if options.ema:
        callbacks.append(MovingAverage(options.ema))
    if options.patience:
        callbacks.append(EarlyStopping("valid_error", patience=options.patience))
    # A bar that redraws itself fills a log file with its every state.
    interactive = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if interactive:
        callbacks.append(RichProgressBar())
    ddp = f"ddp_find_unused_parameters_{str(find_unused).lower()}"
    return L.Trainer(
        max_epochs=options.max_epochs,
        default_root_dir=folder,
        accelerator=options.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=ddp if devices * nodes > 1 else "auto",
        plugins=[WholeFiles(), *([environment] if environment else [])],
        precision=PRECISION[options.precision],
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.clip or None,
        logger=validate and (options.logger or CSVLogger(folder, name="logs")),
        callbacks=callbacks,
        limit_val_batches=None if validate else 0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=interactive,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )


def fit(
    trainer: L.Trainer,
    task: BaseTask,
    data: L.LightningDataModule,
    folder: Path,
    config: dict[str, Any],
) -> dict[str, int]:
    """Train from the last checkpoint of `folder`, or from the start.

    `config` is written to its `config.yaml`, which `check_resumed` reads.

    Returns:
        How many epochs and steps there were, for `done.json`.
    """
    if is_first():
        for path in folder.glob(".*.part*.ckpt"):  # what a kill left half written
            path.unlink()
        write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    resume = folder / LAST if (folder / LAST).exists() else None
    if resume:
        logger.info("going on from %s", resume)
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        # Our own file: it holds the optimiser and the loops, which weights_only would refuse.
        trainer.fit(task, data, ckpt_path=resume, weights_only=False)
    except SystemExit:
        # Lightning's way to end on Ctrl-C; it leaves Ctrl-C disabled.
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from None
    return {"epochs": trainer.current_epoch, "steps": trainer.global_step}
