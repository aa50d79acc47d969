"""The directory of a Transformer language model.

As a model directory has them: `config.yaml` (a section `lm`, the arguments of `TransformerLm`),
`model.safetensors`, the tokenizer's files and `meta.json`. No pickle is read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from speechattn import __version__
from speechattn.config import build, check_sections, read_yaml
from speechattn.data.tokenizer import Tokenizer
from speechattn.decoders.language_model import TransformerLm
from speechattn.errors import ConfigError

CONFIG, WEIGHTS, META = "config.yaml", "model.safetensors", "meta.json"


def build_lm(config: Any, vocab_size: int) -> TransformerLm:
    """Builds a language model from its `lm:` section; `vocab_size` may be left out in it."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"lm: a section of keys and values is needed, not {config!r}")
    return build(TransformerLm, {**config, "vocab_size": vocab_size}, "lm")


def save_lm(
    folder: str | Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    meta: Mapping[str, Any],
) -> None:
    """Writes the directory of a language model.

    Args:
        folder: made if it is not there.
        config: the arguments of `TransformerLm`.
        weights: its state dict.
        tokenizer: its files go beside.
        meta: facts about the training, JSON values.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"lm": dict(config)}, sort_keys=False)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    tokenizer.save(folder)
    meta = {"speechattn": __version__, "vocab_size": tokenizer.vocab_size, **meta}
    (folder / META).write_text(json.dumps(meta, indent=2, ensure_ascii=False), encoding="utf-8")
    # Last, under another name first: a directory with weights is a whole one.
    part = folder / (WEIGHTS + ".part")
    save_file({k: v.contiguous().cpu() for k, v in weights.items()}, part)
    part.replace(folder / WEIGHTS)


def load_lm(folder: str | Path) -> tuple[TransformerLm, Tokenizer]:
    """The language model of a directory, in evaluation mode on the CPU, and its tokenizer.

    Raises:
        ConfigError: the directory is not whole, or is none of a language model.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"{folder} is no directory of a language model: it needs {CONFIG} and {WEIGHTS}; "
            "`speechattn train-lm` makes one"
        )
    config = read_yaml(folder / CONFIG)
    try:
        check_sections(config, ("lm",))
        tokenizer = Tokenizer.load(folder)
        lm = build_lm(config.get("lm"), tokenizer.vocab_size)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
    try:
        lm.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise ConfigError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {error}") from error
    return lm.eval(), tokenizer
