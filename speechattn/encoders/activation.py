"""The activations that an encoder's configuration can name."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["swish", "relu", "tanh", "hardtanh", "selu"]
GateActivation = Literal["identity", "swish", "relu", "tanh", "hardtanh", "selu"]

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": functional.silu,
    "relu": functional.relu,
    "tanh": torch.tanh,
    "hardtanh": functional.hardtanh,
    "selu": functional.selu,
}


def activation_function(name: Activation) -> Callable[[Tensor], Tensor]:
    """Return the function of this name; the names are ESPnet's."""
    if name not in _FUNCTIONS:
        raise ValueError(f"unknown activation {name!r}: choose one of {', '.join(_FUNCTIONS)}")
    return _FUNCTIONS[name]
