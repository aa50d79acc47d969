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
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(config), sort_keys=False)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    tokenizer.save(folder)
    meta = {"speechattn": __version__, "vocab_size": tokenizer.vocab_size, **meta}
    (folder / META).write_text(json.dumps(meta, indent=2, ensure_ascii=False), encoding="utf-8")
    # Last, under another name first: a directory with weights is a whole one.
    part = folder / (WEIGHTS + ".part")
    save_file({k: v.contiguous().cpu() for k, v in weights.items()}, part)
    part.replace(folder / WEIGHTS)
