"""Dropout of attention weights that can be repeated in the backward pass."""

import torch
from torch import Tensor

_LEVELS = 1 << 16


def draw_seed() -> int:
    """Draw a seed from the default generator, which `torch.manual_seed` sets."""
    return int(torch.randint(2**63 - 1, ()))


class WeightDropout:
    """A sequence of masks, the same for the same seed.

    Sixteen random bits a value, as in `speechattn.dropout.Dropout`: the probability is rounded to
    1/65536 and the scale goes by the rounded value.

    Args:
        p: chance of a weight to become zero, in [0, 1].
        seed: from `draw_seed`.
        device: where the weights are.
    """

    def __init__(self, p: float, seed: int, device: torch.device):
        self._dropped = round(p * _LEVELS)
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device

    def mask(self, like: Tensor) -> Tensor:
        """Return the next factors of weights of this shape and dtype: 0 or 1 / (1 - p)."""
        if self._dropped == _LEVELS:
            return torch.zeros_like(like)
        count = like.numel()
        words = torch.empty((count + 3) // 4, dtype=torch.int64, device=self._device)
        words.random_(-(2**63), None, generator=self._generator)
        bits = words.view(torch.int16)[:count].view(like.shape)  # uniform, -32768 to 32767
        keep = (bits >= self._dropped - _LEVELS // 2).to(like.dtype)
        return keep.mul_(_LEVELS / (_LEVELS - self._dropped))
