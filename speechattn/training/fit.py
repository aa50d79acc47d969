"""Training from a configuration, resumed where it stopped, and the average of its best epochs."""

import json
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterable, Sequence
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
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from speechattn.config import build, check_sections, read_yaml
from speechattn.data.batches import DataOptions
from speechattn.data.batches.datamodule import SpeechData
from speechattn.data.crops.roi import RoiOptions
from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding.config import search_of
from speechattn.errors import ConfigError, SpeechattnError
from speechattn.files import write_text
from speechattn.losses import JointLoss
from speechattn.model.directory import build_model, save_model_dir
from speechattn.training.checkpoints import LastCheckpoint, MovingAverage, WholeFiles
from speechattn.training.initialise import initialise
from speechattn.training.options import TrainingOptions
from speechattn.training.processes import is_first, leaves_out, processes, quieten
from speechattn.training.table import EpochTable
from speechattn.training.task import SpeechTask
from speechattn.transcribe.long_files import LongFormOptions

logger = logging.getLogger(__name__)
# Lightning turns its own chatter on when it is imported: advertisements, what was found on the
# machine. Warnings stay, but for those that say what resuming is and what torch will rename.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
warnings.filterwarnings("ignore", message=".*does not have many workers")

SECTIONS = ("model", "loss", "data", "training", "search", "roi", "long_form")
PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
LAST = "last.ckpt"
CHECKPOINT = re.compile(r"epoch=(\d+)-error=([\d.]+)\.ckpt$")


def set_noise(config: dict[str, Any], noise: str | Path | None) -> None:
    """Names the file for every AddNoise of `data.audio_transforms`, or drops them without one."""
    quieten()
    data = config.get("data") or {}
    kept = []
    for transform in data.get("audio_transforms") or []:
        named = transform["class_path"] if isinstance(transform, dict) else str(transform)
        if named.split(".")[-1] == "AddNoise":
            if noise is None:
                logger.warning("no --noise FILE: training without added noise")
                continue
            transform = transform if isinstance(transform, dict) else {"class_path": named}
            transform["init_args"] = {**(transform.get("init_args") or {}), "noise": str(noise)}
        kept.append(transform)
    if kept or data.get("audio_transforms"):
        data["audio_transforms"] = kept


def train(
    config: dict[str, Any],
    train_cuts: str | Path,
    valid_cuts: str | Path,
    tokenizer_dir: str | Path,
    exp: str | Path,
    crops: str | Path | None = None,
    allow: Iterable[str] = (),
    init: Iterable[str | Path] = (),
    renew_classifier: bool = False,
) -> Path:
    """Train a model, from where an earlier call with the same `exp` stopped.

    Args:
        config: sections `model`, `loss`, `data`, `training`, and what goes into the model
            directory, `search` and `roi`.
        train_cuts: Lhotse cuts to learn from.
        valid_cuts: Lhotse cuts that rank the epochs.
        tokenizer_dir: the tokenizer's files.
        exp: the experiment; `train/` below it is written.
        crops: the mouth crops of the cuts, for a model that sees.
        allow: packages beside this one whose classes the configuration may name.
        init: model directories to start from, see `initialise`.
        renew_classifier: begin with new CTC heads, decoder embedding and output all the same.

    Returns:
        `exp/train`.

    Raises:
        ConfigError: the configuration, a manifest or a model to start from cannot be used.
        SpeechattnError: a batch does not fit into memory, or too much had to be left out.
    """
    quieten()
    check_sections(config, SECTIONS)
    options: TrainingOptions = build(
        TrainingOptions, config.get("training") or {}, "training", allow
    )
    data_options: DataOptions = build(DataOptions, config.get("data") or {}, "data", allow)
    loss: JointLoss = build(JointLoss, config.get("loss") or {}, "loss", allow)
    # Used hours later; what is wrong in them is said now.
    search = search_of(config, allow)
    build(RoiOptions, config.get("roi") or {}, "roi")
    build(LongFormOptions, config.get("long_form") or {}, "long_form")
    folder = Path(exp) / "train"
    folder.mkdir(parents=True, exist_ok=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    L.seed_everything(options.seed, workers=True, verbose=False)
    tokenizer = Tokenizer.load(tokenizer_dir)
    model = build_model(config.get("model"), tokenizer.vocab_size, allow)
    search.check_model(model)
    task = SpeechTask(model, loss, options)
    logger.info("%s, %.2f M parameters", "+".join(model.modalities), model.num_parameters() / 1e6)
    check_resumed(folder, config)
    init = list(init)
    if renew_classifier and not init:
        raise ConfigError("--renew-classifier is for a model to start from: name it with --init")
    last = folder / LAST
    find_unused = options.find_unused
    if find_unused is None:
        find_unused = leaves_out(model, loss)
    trainer = make_trainer(options, folder, find_unused, options.save_steps)
    if is_first():
        write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    data = SpeechData(
        data_options,
        train_cuts,
        valid_cuts,
        tokenizer,
        modalities=model.modalities,
        crops=crops,
        crop_size=model.crop_size,
        sample_rate=model.sample_rate,
        seed=options.seed,
    )
    resume = last if last.exists() else None
    if resume:
        logger.info("going on from %s", resume)
        if init:
            logger.info("--init is for the start of a run; this one goes on as it began")
    else:
        initialise(model, init, tokenizer, allow, renew_classifier)
    # Our own file: it holds the optimiser and the loops, which weights_only would refuse.
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(task, data, ckpt_path=resume, weights_only=False)
    except SystemExit:
        # So Lightning ends on Ctrl-C, and it leaves Ctrl-C without effect.
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from None
    except torch.OutOfMemoryError as error:
        raise SpeechattnError(
            f"out of memory on {task.now}. Lower data.batch_seconds, now "
            f"{data_options.batch_seconds:g} (and raise training.accumulate, now "
            f"{options.accumulate}, by as much), or take training.precision=bf16; run it again to "
            "go on from the last checkpoint"
        ) from error
    facts = {"epochs": trainer.current_epoch, "steps": trainer.global_step}
    if trainer.is_global_zero:
        write_text(folder / "done.json", json.dumps(facts))
    return folder


def check_resumed(folder: Path, config: dict[str, Any], fixed: Sequence[str] = ("model",)) -> None:
    """Whether a configuration may go on with what an earlier one began in `folder`.

    Args:
        folder: of checkpoints.
        config: the new one.
        fixed: sections that have to be the same.

    Raises:
        ConfigError: the model is another one. Other changes are only reported.
    """
    if not (folder / LAST).exists() or not (folder / "config.yaml").exists():
        return
    before = read_yaml(folder / "config.yaml")
    config = yaml.safe_load(yaml.safe_dump(config))  # as it would be read back
    changed = [name for name in {**before, **config} if before.get(name) != config.get(name)]
    for name in fixed:
        if name in changed:
            raise ConfigError(
                f"{name}: {folder} was begun with another model; choose another --exp, or remove it"
            )
    if changed:
        logger.warning("going on with other settings than before in: %s", ", ".join(changed))


def make_trainer(
    options: TrainingOptions,
    folder: Path,
    find_unused: bool = True,
    save_steps: int = 0,
    table: EpochTable | None = None,
) -> L.Trainer:
    """The Lightning trainer that the options describe.

    Args:
        options: see there.
        folder: of checkpoints and tables.
        find_unused: see `TrainingOptions`.
        save_steps: from one checkpoint within an epoch to the next; 0 for data that cannot go on
            there.
        table: of the epochs' figures; a recogniser's where left out.
    """
    devices, nodes, environment = processes(options)
    callbacks: list[Callback] = [
        ModelCheckpoint(
            folder,
            filename="epoch={epoch:03d}-error={valid_error:.3f}",
            auto_insert_metric_name=False,
            monitor="valid_error",
            save_top_k=options.keep,
            # Else an epoch that is done again is kept twice, the second as -v1.ckpt.
            enable_version_counter=False,
        ),
        LastCheckpoint(folder / LAST, save_steps),
        LearningRateMonitor("step"),
        table or EpochTable(folder / "metrics.csv"),
    ]
    if options.ema:
        callbacks.append(MovingAverage(options.ema))
    if options.patience:
        callbacks.append(EarlyStopping("valid_error", patience=options.patience))
    # A bar that redraws itself fills a log file with its every state.
    interactive = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if interactive:
        callbacks.append(RichProgressBar())
    return L.Trainer(
        max_epochs=options.max_epochs,
        default_root_dir=folder,
        accelerator=options.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=f"ddp_find_unused_parameters_{str(find_unused).lower()}"
        if devices * nodes > 1
        else "auto",
        plugins=[WholeFiles(), *([environment] if environment else [])],
        precision=PRECISION[options.precision],
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.clip or None,
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        callbacks=callbacks,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=interactive,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )


def best_checkpoints(folder: str | Path) -> list[Path]:
    """The kept checkpoints of a training folder, best first; the later of two equals first."""
    found = []
    for path in Path(folder).glob("epoch=*.ckpt"):
        match = CHECKPOINT.search(path.name)
        if match:
            found.append((float(match[2]), -int(match[1]), path))
    return [path for _, _, path in sorted(found)]


def average_weights(checkpoints: Iterable[Path]) -> dict[str, Tensor]:
    """The mean of the models in Lightning checkpoints; counters are taken from the first."""
    paths = list(checkpoints)
    mean: dict[str, Tensor] = {}
    for path in paths:
        state = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
        for name, value in state.items():
            if not name.startswith("model."):
                continue  # what the loss counts
            name = name.removeprefix("model.")
            if not value.is_floating_point():
                mean.setdefault(name, value)
            elif name in mean:
                mean[name] += value.double() / len(paths)
            else:
                mean[name] = value.double() / len(paths)
    return {k: v.float() if v.is_floating_point() else v for k, v in mean.items()}


def average(
    config: dict[str, Any],
    exp: str | Path,
    tokenizer_dir: str | Path,
    best: int = 5,
    meta: dict[str, Any] | None = None,
    allow: Iterable[str] = (),
) -> Path:
    """Average the best epochs of `exp/train` into the model directory `exp/model`.

    They are the weights that were validated: with `training.ema` those of the moving average, of
    which `best` 1 takes one as it is.
    """
    exp = Path(exp)
    paths = best_checkpoints(exp / "train")[:best]
    if not paths:
        raise ConfigError(f"{exp / 'train'} has no checkpoint to average: train first")
    tokenizer = Tokenizer.load(tokenizer_dir)
    weights = average_weights(paths)
    model = build_model(config.get("model"), tokenizer.vocab_size, allow)
    model.load_state_dict(weights)
    meta = {
        "averaged": [path.name for path in paths],
        "parameters": model.num_parameters(),
        "modalities": list(model.modalities),
        **(meta or {}),
    }
    save_model_dir(exp / "model", config, weights, tokenizer, meta)
    logger.info("averaged %s", ", ".join(path.name for path in paths))
    return exp / "model"
