"""One dtype for all operands of a kernel, under autocast too."""

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def operands(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to autocast's dtype where it is on (float64 stays), else to the dtype of the first."""
    dtype, device = tensors[0].dtype, tensors[0].device.type
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) for t in tensors)
