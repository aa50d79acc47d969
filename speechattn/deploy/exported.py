"""The exported folder: a model directory whose weights are ONNX graphs.

`config.yaml`, the tokenizer's files and `meta.json` are as in a model directory; in the place of
`model.safetensors` stand the graphs of `speechattn.deploy.export`, those of an ensemble in a
folder for each model. Where a model sees, `frontend.safetensors` has the weights of its visual
frontend, which no graph can hold.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from speechattn.data.tokenizers import Tokenizer
from speechattn.deploy.export import ENCODER, OnnxModel, export_onnx
from speechattn.deploy.packing import unpack
from speechattn.errors import ConfigError
from speechattn.files import write_text
from speechattn.model.directory import CONFIG, META, WEIGHTS, build_model, load_model, read_config
from speechattn.model.ensemble import Ensemble
from speechattn.model.speech_model import SpeechModel

FRONTEND = "frontend.safetensors"


def is_exported(folder: str | Path) -> bool:
    """Whether a folder has graphs where a model directory has weights."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or (folder / WEIGHTS).exists():
        return False
    return any(True for _ in folder.glob(ENCODER)) or any(True for _ in folder.glob(f"*/{ENCODER}"))


def export_dir(source: str | Path, output: str | Path, allow: Iterable[str] = ()) -> list[Path]:
    """Write the exported folder of a model directory.

    Args:
        source: a model directory, of one model or of an ensemble.
        output: made if it is not there.
        allow: packages beside this one whose classes config.yaml may name.

    Returns:
        The graphs.

    Raises:
        ConfigError: a model cannot be exported, or `output` has a model's weights already.
    """
    source, output = Path(source), Path(output)
    if (output / WEIGHTS).exists():
        raise ConfigError(f"--output {output}: is a model directory; name another folder")
    model = load_model(source, allow)
    # Last of all comes config.yaml, without which the folder is none.
    (output / CONFIG).unlink(missing_ok=True)
    files = []
    for name, one in parts(model).items():
        files += export_onnx(one, output / name)
        if "video" in one.streams:
            weights = unpack(one.streams["video"].frontend).state_dict()
            save_file({k: w.contiguous() for k, w in weights.items()}, output / name / FRONTEND)
    Tokenizer.load(source).save(output)
    if (source / META).is_file():
        shutil.copyfile(source / META, output / META)
    config = read_config(source)
    write_text(output / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return files


def parts(model: SpeechModel | Ensemble) -> dict[str, SpeechModel]:
    """The models by the folder that each is in, below the exported one."""
    if not isinstance(model, Ensemble):
        return {"": model}
    for name in model.models:
        if Path(name).name != name:
            raise ConfigError(f"export: {name!r} cannot be a folder: call this model otherwise")
    return dict(model.models)


def load_exported(folder: str | Path, allow: Iterable[str] = ()) -> OnnxModel | Ensemble:
    """The graphs of an exported folder, in the place of `load_model`'s model.

    Raises:
        ConfigError: the folder is not whole, or onnxruntime is not there.
    """
    folder = Path(folder)
    config, vocab_size = read_config(folder), Tokenizer.load(folder).vocab_size
    if "ensemble" not in config:
        return load_one(folder, config["model"], vocab_size, allow)
    ensemble = config["ensemble"]
    models = {
        name: load_one(folder / name, section, vocab_size, allow)
        for name, section in ensemble["models"].items()
    }
    return Ensemble(models, ensemble["weights"])


def load_one(folder: Path, section: dict, vocab_size: int, allow: Iterable[str] = ()) -> OnnxModel:
    """The graphs of one model."""
    # Its shapes are enough, but for what sees.
    with torch.device("meta"):
        source = build_model(section, vocab_size, allow)
    if "video" in source.streams:
        load_frontend(source.streams["video"].frontend, folder / FRONTEND)
    return OnnxModel(source, folder).eval()


def load_frontend(frontend: nn.Module, path: Path) -> None:
    """Give a visual frontend that is without weights those of a file."""
    if not path.is_file():
        raise ConfigError(f"{path} is missing: write it with `speechattn export`")
    try:
        frontend.load_state_dict(load_file(path), assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise ConfigError(f"{path} does not fit its {CONFIG}: {error}") from error
    frontend.eval()
