"""Circular correlation of weights and values, each item at its own length.

    y_i = sum over j of w_j v_((i + j) mod n),    i, j from 0 to n - 1

for an item of n frames. Legend: see `speechattn.kernels`; P points of the Fourier transform.
"""

import torch
from torch import Tensor

from speechattn.kernels.backend import choose
from speechattn.kernels.precision import HALF
from speechattn.masks import padding_mask


def circular_convolution(weights: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Sum values by weights for each circular distance.

    Args:
        weights: (B, T, H); padding is not read.
        values: (B, T, H, Dh); likewise. Half precision is computed in float32.
        lengths: (B,) int64.

    Returns:
        (B, T, H, Dh) in the dtype of `values`, zero beyond an item's frames.
    """
    hidden = ~padding_mask(lengths, values.shape[1])[..., None]  # (B, T, 1)
    w = weights.masked_fill(hidden, 0.0)
    v = values.masked_fill(hidden[..., None], 0.0)
    if values.dtype in HALF:
        v = v.float()
    w = w.to(v.dtype)
    with torch.autocast(v.device.type, enabled=False):
        compute = {"reference": reference, "torch": by_fft}[choose(v.device)]
        return compute(w, v, lengths).to(values.dtype)


def reference(weights: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Compute the definition; see `circular_convolution`. Takes T^2 time and memory."""
    rows = []
    for w, v, n in zip(weights, values, lengths.tolist(), strict=True):
        i = torch.arange(n, device=v.device)
        around = v[(i[:, None] + i) % max(n, 1)]  # (n, n, H, Dh)
        y = torch.einsum("jh,ijhd->ihd", w[:n], around)
        rows.append(torch.cat((y, 0 * v[n:])))
    return torch.stack(rows)


def by_fft(weights: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Compute by fast Fourier transforms of all items together; see `circular_convolution`.

    As lengths differ, the correlation is linear, over P >= 2T points: c_k = sum over j of
    w_j v_(k + j) for k from 1 - n to n - 1. Then it is wrapped at each length:
    y_i = c_i + c_(i - n).
    """
    frames = values.shape[1]
    points = _good_size(2 * frames)
    spectrum = torch.fft.rfft(weights, points, dim=1).conj()[..., None]  # (B, P / 2 + 1, H, 1)
    line = torch.fft.irfft(spectrum * torch.fft.rfft(values, points, dim=1), points, dim=1)
    i = torch.arange(frames, device=values.device)
    # c_(-n) is 0: nothing is added to the first frame.
    before = (i - lengths[:, None]) % points  # (B, T)
    wrapped = line.gather(1, before[..., None, None].expand_as(values))
    y = line[:, :frames] + wrapped
    return y.masked_fill(~padding_mask(lengths, frames)[..., None, None], 0.0)


def _good_size(least: int) -> int:
    """Return the smallest product of 2s, 3s and 5s from `least` on, a fast size of transforms."""
    best = 1 << max(least - 1, 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            size = three
            while size < least:
                size *= 2
            best = min(best, size)
            three *= 3
        five *= 5
    return best
