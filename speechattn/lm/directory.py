"""The directory of a Transformer language model.

It has the files of a model directory: `config.yaml` (a section `lm`, the arguments of
`TransformerLm`), `model.safetensors`, the tokenizer's files and `meta.json`. No pickle is read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from speechattn.config import build, check_sections, read_yaml
from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError
from speechattn.lm.transformer import TransformerLm
from speechattn.model.saved import CONFIG, WEIGHTS, write_trained


def build_lm(config: Any, vocab_size: int) -> TransformerLm:
    """Build a language model from its `lm:` section; `vocab_size` may be left out in it."""
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
    """Write the directory of a language model; `config` are the arguments of `TransformerLm`.

    The other arguments are those of `write_trained`.
    """
    write_trained(folder, {"lm": dict(config)}, weights, tokenizer, meta)


def load_lm(folder: str | Path) -> tuple[TransformerLm, Tokenizer]:
    """Load the language model of a directory, in evaluation mode on the CPU, and its tokenizer.

    Raises:
        ConfigError: the directory is incomplete, or holds no language model.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"{folder} is not the directory of a language model: it needs {CONFIG} and {WEIGHTS}; "
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
