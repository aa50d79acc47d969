"""Batch normalisation over the real frames of a ragged batch."""

import torch
from torch import Tensor, nn

from speechattn.masks import padding_mask


class MaskedBatchNorm(nn.Module):
    """`BatchNorm1d` of the frames that are no padding (1502.03167).

    Parameters and buffers bear the names of torch's, and the numbers are those of `BatchNorm1d` on
    the real frames laid end to end. It is no subclass of torch's, so that a conversion to
    `SyncBatchNorm` leaves it alone instead of dropping the lengths.

    Args:
        channels: C.
        eps: added to the variance.
        momentum: share of the running statistics that a training step replaces.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Normalise x (B, T, C), with lengths (B,), to (B, T, C) in the dtype of x."""
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            return torch.addcmul(self.bias - self.running_mean * scale, x, scale).to(x.dtype)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision cannot add up
        real = padding_mask(lengths, x.shape[1])[..., None]  # (B, T, 1)
        count = real.sum()
        share = real / count.clamp(min=1).to(wide.dtype)
        mean = (wide * share).sum((0, 1))  # (C,)
        centred = wide - mean
        var = (centred.square() * share).sum((0, 1))  # (C,)
        with torch.no_grad():
            # No frame has no mean, and one frame no variance: what was learnt stays as it is.
            weight = self.momentum * (count > 0).to(self.running_mean.dtype)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
            unbiased = var * (count / (count - 1).clamp(min=1))
            weight = self.momentum * (count > 1).to(self.running_var.dtype)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(var + self.eps)
        return torch.addcmul(self.bias, centred, scale).to(x.dtype)
