"""SpecAugment: features masked over time and frequency, and warped in time."""

from typing import Literal

import torch
from torch import Tensor, nn


class SpecAugment(nn.Module):
    """Masks over time and frequency, and time warping (Park et al. 2019, arXiv:1904.08779).

    Works on a whole batch without a loop, in training only. Every utterance gets masks of its own,
    inside of its own length: padding is neither read nor written. The values drawn come from the
    generator handed to `forward`, or without one from torch's, as dropout's do.

    Args:
        freq_masks: number of masks over frequency.
        freq_width: widest of them, in bins; widths are uniform from 0 to it.
        time_masks: number of masks over time.
        time_width: widest of them, in frames.
        time_ratio: widest of them, as a share of the utterance (the `p` of the paper); the
            narrower of the two bounds counts.
        time_warp: farthest that a point in time is moved, in frames; 0 for no warping.
        fill: "mean" of the utterance over its frames, bin by bin, or "zero".
    """

    def __init__(
        self,
        freq_masks: int = 2,
        freq_width: int = 27,
        time_masks: int = 2,
        time_width: int = 40,
        *,
        time_ratio: float = 0.2,
        time_warp: int = 0,
        fill: Literal["mean", "zero"] = "mean",
    ):
        super().__init__()
        self.freq_masks, self.freq_width, self.time_masks = freq_masks, freq_width, time_masks
        self.time_width, self.time_ratio = time_width, time_ratio
        self.time_warp, self.fill = time_warp, fill

    def forward(
        self, x: Tensor, lengths: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Mask features (B, T, F), with lengths (B,), by draws of the generator.

        Returns:
            (B, T, F); `x` itself in evaluation.
        """
        if not self.training:
            return x
        lengths = lengths.to(x.device)
        if self.time_warp > 0:
            x = _warp(x, lengths, self.time_warp, generator)
        frames, bins = x.shape[1:]
        valid = torch.arange(frames, device=x.device) < lengths[:, None]  # (B, T)
        widest = (lengths * self.time_ratio).long().clamp(max=self.time_width)
        time = _spans(lengths, widest, self.time_masks, frames, generator)  # (B, T)
        whole = torch.full_like(lengths, bins)
        narrow = whole.clamp(max=self.freq_width)
        freq = _spans(whole, narrow, self.freq_masks, bins, generator)  # (B, F)
        masked = (time[:, :, None] | freq[:, None, :]) & valid[:, :, None]  # (B, T, F)
        if self.fill == "zero":
            return x.masked_fill(masked, 0.0)
        total = x.masked_fill(~valid[:, :, None], 0.0).sum(1, keepdim=True, dtype=torch.float32)
        mean = total / lengths.clamp(min=1)[:, None, None]  # (B, 1, F)
        return torch.where(masked, mean.to(x.dtype), x)


def _draw(x: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw uniformly from [0, 1), (B, count), on the device of x (B, ...)."""
    device = x.device if generator is None else generator.device
    return torch.rand(len(x), count, generator=generator, device=device).to(x.device)


def _spans(
    sizes: Tensor, widest: Tensor, count: int, axis: int, generator: torch.Generator | None
) -> Tensor:
    """Draw `count` spans inside of each [0, size); return where any lies, bool (B, axis)."""
    width = (_draw(sizes, count, generator) * (widest[:, None] + 1)).long()
    width = torch.minimum(width, widest[:, None])  # a float just below 1 can round up
    room = sizes[:, None] - width
    start = torch.minimum((_draw(sizes, count, generator) * (room + 1)).long(), room)
    position = torch.arange(axis, device=sizes.device)
    inside = (position >= start[..., None]) & (position < (start + width)[..., None])
    return inside.any(1)


def _warp(x: Tensor, lengths: Tensor, reach: int, generator: torch.Generator | None) -> Tensor:
    """Move an inner point of each utterance, if it has room, by up to `reach` frames, linearly."""
    frames = x.shape[1]
    last = (lengths - 1)[:, None].to(torch.float32)
    room = (last - 2 * reach).clamp(min=0)
    point = reach + _draw(x, 1, generator) * room  # (B, 1) in the source
    moved = point + (2 * _draw(x, 1, generator) - 1) * (reach - 1)  # stays inside
    position = torch.arange(frames, device=x.device, dtype=torch.float32)[None]
    before = position * (point / moved.clamp(min=1e-3))
    after = last - (last - position) * ((last - point) / (last - moved).clamp(min=1e-3))
    source = torch.where(position < moved, before, after)
    source = torch.where((room > 0) & (position <= last), source, position)  # (B, T)
    low = source.floor().long().clamp(0, frames - 1)
    high = (low + 1).clamp(max=frames - 1)
    share = (source - low)[..., None].to(x.dtype)
    below, above = (x.gather(1, i[..., None].expand_as(x)) for i in (low, high))
    return torch.where(share > 0, below + (above - below) * share, below)  # (B, T, F)
