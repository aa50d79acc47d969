"""Training of a recogniser from a configuration."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from speechattn.config import build, check_sections
from speechattn.data.batches import DataOptions
from speechattn.data.batches.datamodule import SpeechData
from speechattn.data.crops.roi import RoiOptions
from speechattn.data.long_form import LongFormOptions
from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding.config import search_of
from speechattn.errors import ConfigError, SpeechattnError
from speechattn.files import write_text
from speechattn.losses import JointLoss
from speechattn.model.directory import build_model
from speechattn.training.initialise import initialise
from speechattn.training.options import TrainingOptions, read_training_options
from speechattn.training.processes import leaves_out, quieten
from speechattn.training.task import SpeechTask
from speechattn.training.trainer import LAST, check_resumed, fit, make_trainer, seed

logger = logging.getLogger(__name__)

SECTIONS = ("model", "loss", "data", "training", "search", "roi", "long_form")


def train(
    config: dict[str, Any],
    train_cuts: str | Path,
    valid_cuts: str | Path,
    tokenizer_dir: str | Path,
    exp: str | Path,
    *,
    crops: str | Path | None = None,
    allow: Iterable[str] = (),
    init: Iterable[str | Path] = (),
    renew_classifier: bool = False,
) -> Path:
    """Train a model, from where an earlier call with the same `exp` stopped.

    Args:
        config: sections `model`, `loss`, `data`, `training`, and what goes into the model
            directory, `search`, `roi` and `long_form`.
        train_cuts: Lhotse cuts to learn from.
        valid_cuts: Lhotse cuts that rank the epochs.
        tokenizer_dir: the tokenizer's files.
        exp: the experiment; `train/` below it is written.
        crops: the mouth crops of the cuts, for a model that uses video.
        allow: packages beside this one whose classes the configuration may name.
        init: model directories to start from, see `initialise`.
        renew_classifier: begin with new CTC heads, decoder embedding and output all the same.

    Returns:
        `exp/train`.

    Raises:
        ConfigError: the configuration, a manifest or a model to start from cannot be used.
        SpeechattnError: a batch does not fit into memory, or too much had to be skipped.
    """
    quieten()
    check_sections(config, SECTIONS)
    options = read_training_options(config, allow)
    data_options: DataOptions = build(DataOptions, config.get("data") or {}, "data", allow)
    loss: JointLoss = build(JointLoss, config.get("loss") or {}, "loss", allow)
    init, folder = list(init), Path(exp) / "train"
    if renew_classifier and not init:
        raise ConfigError("--renew-classifier needs a model to start from: --init MODEL")
    seed(options)
    tokenizer = Tokenizer.load(tokenizer_dir)
    model = build_model(config.get("model"), tokenizer.vocab_size, allow)
    check_later_sections(config, model, allow)
    task = SpeechTask(model, loss, options)
    logger.info("%s, %.2f M parameters", "+".join(model.modalities), model.num_parameters() / 1e6)
    folder.mkdir(parents=True, exist_ok=True)
    check_resumed(folder, config)
    unused = leaves_out(model, loss) if options.find_unused is None else options.find_unused
    trainer = make_trainer(options, folder, find_unused=unused, save_steps=options.save_steps)
    sizes = {"crop_size": model.crop_size, "sample_rate": model.sample_rate}
    streams = {"modalities": model.modalities, "crops": crops, **sizes}
    cuts = (train_cuts, valid_cuts)
    data = SpeechData(data_options, *cuts, tokenizer, **streams, seed=options.seed)
    if not (folder / LAST).exists():
        initialise(model, init, tokenizer, allow=allow, renew_classifier=renew_classifier)
    elif init:
        logger.info("--init is only for the start of a run; this one resumes")
    try:
        facts = fit(trainer, task, data, folder, config)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(task, data_options, options) from error
    if trainer.is_global_zero:
        write_text(folder / "done.json", json.dumps(facts))
    return folder


def check_later_sections(
    config: dict[str, Any], model: torch.nn.Module, allow: Iterable[str]
) -> None:
    """Check now the sections that are used hours later, after the training."""
    search_of(config, allow).check_model(model)
    build(RoiOptions, config.get("roi") or {}, "roi")
    build(LongFormOptions, config.get("long_form") or {}, "long_form")


def out_of_memory(task: SpeechTask, data: DataOptions, options: TrainingOptions) -> SpeechattnError:
    """Return an error that says which settings to lower."""
    return SpeechattnError(
        f"out of memory on {task.current}. Lower data.batch_seconds, now {data.batch_seconds:g} "
        f"(and raise training.accumulate, now {options.accumulate}, by as much), or set "
        "training.precision=bf16; run the command again to go on from the last checkpoint"
    )
