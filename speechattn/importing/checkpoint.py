"""Weights of a stranger: read without running code, fitted without leaving any out."""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from speechattn.errors import ConfigError
from speechattn.importing.espnet import POSITIONS, Names, take

SHOWN = 20  # names an error lists
# Where toolkits put the weights in a checkpoint that holds an optimiser's state too.
_INSIDE = ("model", "state_dict", "model_state_dict")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a `.pth`, `.pt`, `.ckpt` or `.safetensors` file, by their names.

    A whole training checkpoint of ESPnet (`model`) or Lightning (`state_dict`, names with `model.`
    before them) will do.

    Raises:
        ConfigError: the file can't be read, holds no weights, or holds objects that only code can
            make.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0].removeprefix("Weights only load failed. ")
        raise ConfigError(
            f"{path}: holds more than tensors and plain values. Reading such a file can run any "
            "code, so it is not read; if you trust it, save the weights alone, with "
            f"torch.save(model.state_dict(), ...) in the toolkit that wrote it ({reason})"
        ) from error
    except Exception as error:  # a broken file fails in every way there is
        raise ConfigError(f"{path}: cannot be read as a checkpoint: {error}") from error
    return _weights(loaded, path)


def _weights(loaded: Any, path: Path) -> dict[str, Tensor]:
    for key in _INSIDE:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise ConfigError(f"{path}: holds no weights by their names")
    if wrong := [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]:
        raise ConfigError(f"{path}: {listed(wrong, 'value(s) are no tensor')}")
    if odd := [str(name) for name, value in loaded.items() if not _plain(value)]:
        raise ConfigError(f"{path}: {listed(odd, 'tensor(s) are sparse, complex or empty')}")
    state = {str(name): value for name, value in loaded.items()}
    if all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): value for name, value in state.items()}
    return state


def _plain(value: Tensor) -> bool:
    """Whether a tensor holds ordinary numbers, each of them."""
    odd = value.is_meta or value.is_complex() or value.is_quantized
    return value.layout == torch.strided and not odd


def fit(model: nn.Module, state: Mapping[str, Tensor], names: Names, path: Path) -> None:
    """Load weights into a model, every one of theirs and every one of ours.

    Args:
        model: takes the weights.
        state: the checkpoint's tensors.
        names: for each name of ours the names of theirs that make it up.
        path: of the checkpoint, for messages.

    Raises:
        ConfigError: a weight that the model has no place for, two for one place, one that the
            checkpoint lacks, or one of another shape.
    """
    try:
        weights = take(state, names)
    except ValueError as error:
        raise ConfigError(f"{path}: does not fit\n  {error}") from error
    wanted = model.state_dict()
    # Counts batches for a momentum that no model here leaves open; old versions did not save it.
    for name, value in wanted.items():
        if name.endswith(".num_batches_tracked"):
            weights.setdefault(name, value)
    problems = []
    if unknown := [theirs for ours in names if ours not in wanted for theirs in names[ours]]:
        problems.append(listed(unknown, "weight(s) in it have no place in the model"))
    used = {part for parts in names.values() for part in parts}
    if twice := [name for name in state if name not in used and not POSITIONS.search(name)]:
        problems.append(listed(twice, "weight(s) in it have the place of another"))
    if missing := [ours for ours in wanted if ours not in weights]:
        problems.append(listed(missing, "weight(s) of the model, by our names, are not in it"))
    shapes = [
        f"{', '.join(names[name])} is {tuple(weights[name].shape)}, "
        f"the model's {name} {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if shapes:
        problems.append(listed(shapes, "weight(s) are of another shape", "; "))
    if problems:
        raise ConfigError(f"{path}: " + "\n  ".join(["does not fit", *problems]))
    model.load_state_dict(weights)


def listed(items: Sequence[str], text: str, separator: str = ", ") -> str:
    """'3 weight(s) are ...: a, b, c', of which at most `SHOWN` are shown."""
    more = f"{separator}and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{len(items)} {text}: {separator.join(items[:SHOWN])}{more}"


def under(names: Names, ours: str, theirs: str) -> Names:
    """The same names with a prefix before each of ours and of theirs."""
    return {
        f"{ours}{name}": tuple(f"{theirs}{part}" for part in parts) for name, parts in names.items()
    }


def without(names: Iterable[str], prefix: str) -> list[str]:
    """The names under `prefix`, without it."""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
