"""The average of the best epochs of a run."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError
from speechattn.model.directory import build_model, save_model_dir

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"epoch=(\d+)-error=([\d.]+)\.ckpt$")


def best_checkpoints(folder: str | Path, count: int | None = None) -> list[Path]:
    """Return the kept checkpoints of a training folder, best first; of equals the later one first.

    Raises:
        ConfigError: `count` of them are wanted and there is none.
    """
    matches = ((CHECKPOINT.search(path.name), path) for path in Path(folder).glob("epoch=*.ckpt"))
    ranked = sorted((float(m[2]), -int(m[1]), path) for m, path in matches if m)
    if count is not None and not ranked:
        raise ConfigError(f"{folder} has no checkpoint to average: train first")
    return [path for _, _, path in ranked[:count]]


def average_weights(checkpoints: Iterable[Path]) -> dict[str, Tensor]:
    """Return the mean of the models in Lightning checkpoints; counters come from the first."""
    paths = list(checkpoints)
    mean: dict[str, Tensor] = {}
    for path in paths:
        state = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
        for name, value in state.items():
            if not name.startswith("model."):
                continue  # counters of the loss
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
    *,
    meta: dict[str, Any] | None = None,
    allow: Iterable[str] = (),
) -> Path:
    """Average the best epochs of `exp/train` into the model directory `exp/model`.

    With `training.ema` they are averages of validated moving averages; `best` 1 takes one as it is.
    """
    exp = Path(exp)
    paths = best_checkpoints(exp / "train", best)
    tokenizer = Tokenizer.load(tokenizer_dir)
    weights = average_weights(paths)
    model = build_model(config.get("model"), tokenizer.vocab_size, allow)
    model.load_state_dict(weights)
    averaged = [path.name for path in paths]
    facts = {"averaged": averaged, "parameters": model.num_parameters()}
    facts |= {"modalities": list(model.modalities), **(meta or {})}
    save_model_dir(exp / "model", config, weights, tokenizer, facts)
    logger.info("averaged %s", ", ".join(averaged))
    return exp / "model"
