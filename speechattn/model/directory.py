"""The model directory: config.yaml, model.safetensors, the tokenizer's files and meta.json.

`config.yaml` holds what made the model (`model:`, or `ensemble:` for several), how it decodes
(`search:`), how mouths are cut out of its videos (`roi:`) and how long files are cut into windows
(`long_form:`). No pickle is read, and no class outside the package is built unless the caller
allows its package.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from speechattn.config import build, check_sections, read_yaml
from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError
from speechattn.model.ensemble import Ensemble
from speechattn.model.saved import CONFIG, META, WEIGHTS, write_trained
from speechattn.model.speech_model import SpeechModel

SECTIONS = ("model", "ensemble", "search", "roi", "long_form")
FILE_KEY = "statistics"  # of normalisation, the one argument of a model's parts that is a file


def build_model(
    config: dict[str, Any], vocab_size: int, allow: Iterable[str] = (), section: str = "model"
) -> SpeechModel:
    """Build a model from its `model:` section.

    Args:
        config: arguments of `SpeechModel`; `vocab_size` may be left out, here, in the decoder and
            in the transducer and its predictor.
        vocab_size: units of the tokenizer.
        allow: packages beside this one whose classes the section may name.
        section: what messages call it.
    """
    if not isinstance(config, dict):
        raise ConfigError(f"{section}: a section of keys and values is needed, not {config!r}")
    # A deep copy of plain values. YAML also has dates: the constructors refuse them as texts.
    config = json.loads(json.dumps(config, default=str))
    config["vocab_size"] = vocab_size
    _set_vocab_size(config.get("decoder"), vocab_size)
    transducer = _set_vocab_size(config.get("transducer"), vocab_size)
    _set_vocab_size(transducer.get("predictor"), vocab_size)
    return build(SpeechModel, config, section, allow)


def _set_vocab_size(component: Any, vocab_size: int) -> dict[str, Any]:
    """Give a component's section its units; its arguments, none where there is no section."""
    if not isinstance(component, dict):
        return {}
    if "class_path" in component:
        component = component.setdefault("init_args", {})
    component["vocab_size"] = vocab_size
    return component


def build_ensemble(config: Any, vocab_size: int, allow: Iterable[str] = ()) -> Ensemble:
    """Build an ensemble from its `ensemble:` section: `weights` and, by name, `models`."""
    sections = config.get("models") if isinstance(config, dict) else None
    weights = config.get("weights") if isinstance(config, dict) else None
    if not isinstance(sections, dict) or not isinstance(weights, dict):
        raise ConfigError("ensemble: the sections `models` and `weights` are needed")
    check_sections(config, ("models", "weights"))
    models = {
        str(name): build_model(section, vocab_size, allow, f"ensemble.models.{name}")
        for name, section in sections.items()
    }
    return Ensemble(models, {str(name): weight for name, weight in weights.items()})


def save_model_dir(
    folder: str | Path,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    tokenizer: Tokenizer,
    meta: dict[str, Any],
) -> None:
    """Write a model directory.

    Args:
        folder: made if it is not there.
        config: sections `model` or `ensemble`, and optionally `search`, `roi` and `long_form`.
        weights: the model's state dict.
        tokenizer: its files go beside.
        meta: facts about the training, JSON values.
    """
    kept = {key: without_files(config[key]) for key in SECTIONS if key in config}
    write_trained(folder, kept, weights, tokenizer, meta)


def without_files(section: Any) -> Any:
    """Return a section without the files that training read; the weights hold what was in them."""
    if isinstance(section, dict):
        return {k: without_files(v) for k, v in section.items() if k != FILE_KEY}
    if isinstance(section, list):
        return [without_files(value) for value in section]
    return section


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the configuration of a model directory."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder} is no model directory: {CONFIG} is missing")
    return read_yaml(path)


def read_meta(folder: str | Path) -> dict[str, Any]:
    """Return the facts about a model's training; empty if there are none."""
    path = Path(folder) / META
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def load_model(folder: str | Path, allow: Iterable[str] = ()) -> SpeechModel | Ensemble:
    """Build the model of a directory and loads its weights, in evaluation mode, on the CPU."""
    folder = Path(folder)
    config = read_config(folder)
    if without_files(config) != config:
        raise ConfigError(
            f"{folder / CONFIG}: `{FILE_KEY}` names a file; a model directory has what it holds in "
            "its weights, so leave it out"
        )
    if ("model" in config) == ("ensemble" in config):
        raise ConfigError(f"{folder / CONFIG}: one section `model` is needed, or one `ensemble`")
    vocab_size = Tokenizer.load(folder).vocab_size
    if "model" in config:
        model = build_model(config["model"], vocab_size, allow)
    else:
        model = build_ensemble(config["ensemble"], vocab_size, allow)
    path = folder / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"{folder} is no model directory: {WEIGHTS} is missing")
    try:
        weights = load_file(path)
        model.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        raise ConfigError(f"{path} does not fit its {CONFIG}: {error}") from error
    return model.eval()
