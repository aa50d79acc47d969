"""The choice between the implementations of an operation."""

import functools
import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["reference", "torch", "triton"]

VARIABLE = "SPEECHATTN_KERNELS"
_KNOWN: tuple[Backend, ...] = ("reference", "torch", "triton")
# Operations with a Triton kernel, and the widest heads that fit into the registers and the shared
# memory of a GPU. None for operations without heads.
_WIDEST = {
    "attention": 256,
    "block_sparse_attention": 256,
    "ctc": None,
    "gated_linear_attention": 128,
    "linear_attention": 128,
    "local_attention": 256,
    "relative_attention": 128,
}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def choose(
    device: torch.device | str, operation: str | None = None, heads: Tensor | None = None
) -> Backend:
    """Return the implementation to use on a device.

    `triton` on NVIDIA GPUs from Ampere on where Triton is installed, for operations that have a
    kernel; else `torch`. The environment variable SPEECHATTN_KERNELS forces one; `triton` then
    still means `torch` for operations, or heads, without a kernel. On a CPU, `triton` requires
    TRITON_INTERPRET=1.

    Args:
        device: of the tensors.
        operation: its name; None for one without a kernel.
        heads: (..., Dh), an operand: kernels take float32 and half precision, and heads up to a
            width.

    Raises:
        ValueError: the variable has an unknown value, or one that cannot run here.
    """
    forced = os.environ.get(VARIABLE)
    if forced and forced not in _KNOWN:
        raise ValueError(f"{VARIABLE}={forced}: choose one of {', '.join(_KNOWN)}")
    if forced in ("reference", "torch"):
        return forced
    device = torch.device(device)
    if forced:
        _require_triton(device)
    elif not _fit_gpu(device):
        return "torch"
    return "triton" if _has_kernel(operation, heads) else "torch"


def _has_kernel(operation: str | None, heads: Tensor | None) -> bool:
    """Return whether there is a kernel of the operation for these heads."""
    if operation not in _WIDEST:
        return False
    return heads is None or (heads.dtype in _DTYPES and heads.shape[-1] <= _WIDEST[operation])


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _fit_gpu(device: torch.device) -> bool:
    """Return whether Triton kernels are the default here: on tensor cores from Ampere on."""
    if device.type != "cuda" or torch.version.hip or not torch.cuda.is_available():
        return False
    return _installed() and torch.cuda.get_device_capability(device) >= (8, 0)


def _require_triton(device: torch.device) -> None:
    """Raise ValueError where `triton` cannot run."""
    if not _installed():
        raise ValueError(f"{VARIABLE}=triton: Triton is not installed (pip install triton)")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"{VARIABLE}=triton: on a CPU its kernels run in Triton's interpreter only; set "
            "TRITON_INTERPRET=1 before the program starts"
        )
