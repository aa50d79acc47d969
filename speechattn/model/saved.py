"""The files of a directory that holds something trained: a recogniser or a language model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from speechattn import __version__
from speechattn.data.tokenizers import Tokenizer
from speechattn.files import replacing, write_text

CONFIG, WEIGHTS, META = "config.yaml", "model.safetensors", "meta.json"


def write_trained(
    folder: str | Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    meta: Mapping[str, Any],
) -> None:
    """Write a directory.

    Args:
        folder: made if it is not there.
        config: what `config.yaml` holds, plain values.
        weights: a state dict.
        tokenizer: its files go beside.
        meta: facts about the training, JSON values.
    """
    folder = Path(folder)
    text = yaml.safe_dump(dict(config), sort_keys=False)
    write_text(folder / CONFIG, text)
    tokenizer.save(folder)
    meta = {"speechattn": __version__, "vocab_size": tokenizer.vocab_size, **meta}
    write_text(folder / META, json.dumps(meta, indent=2, ensure_ascii=False))
    # Last: a directory with weights is a whole one.
    with replacing(folder / WEIGHTS) as part:
        save_file({k: v.contiguous().cpu() for k, v in weights.items()}, part)
