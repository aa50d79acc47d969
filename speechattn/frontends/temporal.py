"""Operations along time on packed frames, which never reach from one clip into another."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speechattn.frontends.activation import Activation, make_activation

TemporalName = Literal["none", "shift", "conv"]


@dataclass(frozen=True)
class Clips:
    """Where clips begin and end among P packed frames.

    Attributes:
        count: B, clips of the batch, those without a frame included.
        item: (P,) the clip of each frame.
        first, last: (P,) bool, true at a clip's first and last frame.
    """

    count: int
    item: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, lengths: Tensor) -> "Clips":
        """Make it from the frames of each clip, (B,)."""
        item = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        change = item[1:] != item[:-1]
        end = change.new_ones(min(len(item), 1))
        return cls(len(lengths), item, torch.cat([end, change]), torch.cat([change, end]))

    def before(self, x: Tensor) -> Tensor:
        """Return the frame before each of x (P, C, H, W); zeros before the first of a clip."""
        return x.roll(1, 0).masked_fill(self.first[:, None, None, None], 0.0)

    def after(self, x: Tensor) -> Tensor:
        """Return the frame after each of x (P, C, H, W); zeros after the last of a clip."""
        return x.roll(-1, 0).masked_fill(self.last[:, None, None, None], 0.0)


class OverTime(nn.Module):
    """A layer that reads other frames of a clip: `forward(x (P, C, H, W), clips)`."""

    def forward(self, x: Tensor, clips: Clips) -> Tensor:
        raise NotImplementedError


class TemporalShift(OverTime):
    """An eighth of the channels comes from the frame after, one from the frame before.

    Lin et al., 1811.08383: motion for no multiplication. Placed in the residual branch, so that
    the shortcut still has the frame's own features.
    """

    PARTS = 8

    def forward(self, x: Tensor, clips: Clips) -> Tensor:
        part = max(x.shape[1] // self.PARTS, 1)
        later, earlier, own = x.split([part, part, x.shape[1] - 2 * part], dim=1)
        return torch.cat([clips.after(later), clips.before(earlier), own], dim=1)


class SpatioTemporalConv(OverTime):
    """A 3x3 convolution, a norm, a non-linearity, then a convolution over 3 frames.

    The (2+1)-D factors of a 3x3x3 convolution, with as many parameters (Tran et al., 1711.11248).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, activation: Activation):
        super().__init__()
        middle = 27 * in_channels * channels // (9 * in_channels + 3 * channels)
        self.spatial = nn.Conv2d(in_channels, middle, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(middle)
        self.act = make_activation(activation, middle)
        # Over the frame before, the frame and the frame after, one after another as channels.
        self.temporal = nn.Conv2d(3 * middle, channels, 1, bias=False)

    def forward(self, x: Tensor, clips: Clips) -> Tensor:
        x = self.act(self.norm(self.spatial(x)))
        return self.temporal(torch.cat([clips.before(x), x, clips.after(x)], dim=1))
