"""Checkpoints from elsewhere, read without running code and loaded without leaving any out."""

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from speechattn.errors import ConfigError
from speechattn.importing.espnet import POSITIONS, Names, take

MAX_LISTED = 20  # names in an error
# Keys of the weights in a checkpoint that has an optimiser's state too.
_INSIDE = ("model", "state_dict", "model_state_dict")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the weights of a `.pth`, `.pt`, `.ckpt` or `.safetensors` file, by their names.

    A whole training checkpoint of ESPnet (`model`) or Lightning (`state_dict`, names with `model.`
    before them) will do.

    Raises:
        ConfigError: the file cannot be read, or holds something else than tensors.
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
    inside = [loaded.get(key) for key in _INSIDE] if isinstance(loaded, Mapping) else []
    loaded = next((weights for weights in inside if isinstance(weights, Mapping)), loaded)
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
    """Return whether a tensor is a dense one of real numbers."""
    odd = value.is_meta or value.is_complex() or value.is_quantized
    return value.layout == torch.strided and not odd


def fit(model: nn.Module, state: Mapping[str, Tensor], names: Names, path: Path) -> None:
    """Load all weights of a checkpoint into a model, and all that it has.

    Args:
        model: takes the weights.
        state: the checkpoint's tensors.
        names: see `Names`.
        path: of the checkpoint, for messages.

    Raises:
        ConfigError: a weight has no place in the model or that of another, is missing, or is of
            another shape.
    """
    try:
        weights = take(state, names)
    except ValueError as error:
        raise ConfigError(f"{path}: does not fit\n  {error}") from error
    wanted = model.state_dict()
    # These counters matter only without a momentum, and old versions did not save them.
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
    """Return '3 weight(s) are ...: a, b, c', with at most `MAX_LISTED` names."""
    more = f"{separator}and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return f"{len(items)} {text}: {separator.join(items[:MAX_LISTED])}{more}"


def map_part(
    names: Iterable[str], mapper: Callable[[list[str]], Names], ours: str, theirs: str
) -> Names:
    """Map the names that begin with `theirs` to names that begin with `ours`.

    `mapper` gets and returns names without these prefixes.
    """
    inner = [name.removeprefix(theirs) for name in names if name.startswith(theirs)]
    return {
        f"{ours}{name}": tuple(f"{theirs}{part}" for part in parts)
        for name, parts in mapper(inner).items()
    }
