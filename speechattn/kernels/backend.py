"""Which way of computing an operation runs where."""

import os
from typing import Literal

import torch

Backend = Literal["reference", "torch", "triton"]

VARIABLE = "SPEECHATTN_KERNELS"
_IMPLEMENTED: tuple[Backend, ...] = ("reference", "torch")


def choose(device: torch.device | str) -> Backend:
    """The way to compute on a device.

    The environment variable SPEECHATTN_KERNELS forces one. No operation has a Triton kernel yet, so
    `triton` is refused, and a GPU runs `torch`.

    Args:
        device: where the tensors are.

    Raises:
        ValueError: the variable names something that does not exist.
    """
    forced = os.environ.get(VARIABLE)
    if not forced:
        return "torch"
    if forced not in _IMPLEMENTED:
        raise ValueError(f"{VARIABLE}={forced}: choose one of {', '.join(_IMPLEMENTED)}")
    return forced
