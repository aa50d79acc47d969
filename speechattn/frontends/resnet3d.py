"""ResNet3D: a 3-D convolutional stem and a 2-D ResNet trunk over mouth crops.

The visual frontend of the published lip-reading systems (Stafylakis & Tzimiropoulos, 1703.04105;
Ma et al., 2102.06657): one 5x7x7 convolution sees short motion, then an ImageNet-style ResNet-18
describes each frame.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from speechattn.frontends.base import Frontend
from speechattn.masks import padding_mask

Activation = Literal["relu", "prelu", "swish"]


def make_activation(name: Activation, channels: int) -> nn.Module:
    """The non-linearity called `name`; PReLU learns one slope a channel."""
    if name == "prelu":
        return nn.PReLU(channels)
    return {"relu": nn.ReLU, "swish": nn.SiLU}[name](inplace=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 1512.03385), on (N, C, H, W)."""

    def __init__(self, in_channels: int, channels: int, stride: int, activation: Activation):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.act1 = make_activation(activation, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.act2 = make_activation(activation, channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.act2(y + self.shortcut(x))


class ResNet3D(Frontend):
    """Mouth crops to one vector a frame.

    Args:
        stem_channels: output channels of the 3-D convolution.
        channels: width of the four trunk stages; the last is the output size.
        blocks: residual blocks in each stage; (2, 2, 2, 2) is ResNet-18.
        activation: the non-linearity; published lip readers use swish or PReLU.
        image_channels: 1 for grey crops, 3 for colour.
        normalise: 'fixed' takes `mean` away and divides by `std`, as published models do; 'clip'
            takes each pixel's mean over the clip away and divides by the deviation of what is
            left, so that the network sees what moves rather than the face that does not (our
            own, for little data; needs the whole clip).
        output_norm: batch norm on each frame's vector, for the same reason (our own).
        mean: pixel mean after scaling to [0, 1].
        std: pixel standard deviation after scaling to [0, 1].
        pool_input: average pixels in squares of this side first. 1 is the published network; the
            recipes that must train on a CPU use 2.
    """

    def __init__(
        self,
        stem_channels: int = 64,
        channels: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
        activation: Activation = "swish",
        image_channels: int = 1,
        normalise: Literal["fixed", "clip"] = "fixed",
        output_norm: bool = False,
        mean: float = 0.421,
        std: float = 0.165,
        pool_input: int = 1,
    ):
        super().__init__()
        self.output_size = channels[-1]
        self.normalise = normalise
        self.mean, self.std = mean, std
        self.pool_input = pool_input
        self.stem = nn.Sequential(
            nn.Conv3d(
                image_channels, stem_channels, (5, 7, 7), (1, 2, 2), padding=(2, 3, 3), bias=False
            )
        )
        self.stem_norm = nn.BatchNorm2d(stem_channels)
        self.stem_act = make_activation(activation, stem_channels)
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages = []
        width = stem_channels
        for i, (out, depth) in enumerate(zip(channels, blocks, strict=True)):
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                stages.append(BasicBlock(width, out, stride, activation))
                width = out
        self.trunk = nn.Sequential(*stages)
        self.output_norm = nn.BatchNorm1d(width) if output_norm else nn.Identity()

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Describes each frame.

        Args:
            x: (B, T, C, H, W) crops, uint8 or float in [0, 255].
            lengths: (B,) frames of each clip.

        Returns:
            (B, T, output_size) and the same lengths; padded frames are zero.
        """
        real = padding_mask(lengths, x.shape[1])  # (B, T)
        x = x.float() / 255.0
        if self.normalise == "fixed":
            x = (x - self.mean) / self.std
        if self.pool_input > 1:
            x = nn.functional.avg_pool2d(x.flatten(0, 1), self.pool_input).unflatten(0, x.shape[:2])
        # Beyond its end a clip must look as it does alone: as the convolution's zero padding.
        shown = real[:, :, None, None, None]
        x = x * shown
        if self.normalise == "clip":
            frames = lengths.clamp(min=1)[:, None, None, None, None]
            x = (x - x.sum(1, keepdim=True) / frames) * shown
            power = x.square().sum(1, keepdim=True).mean((2, 3, 4), keepdim=True) / frames
            x = x / power.clamp(min=1e-8).sqrt()
        x = self.stem(x.transpose(1, 2)).transpose(1, 2)  # (B, T, C, H/2, W/2)
        # Only real frames go on: no work on padding, and batch norm counts what is there.
        x = x[real].contiguous(memory_format=torch.channels_last)  # (N, C, H/2, W/2)
        x = self.pool(self.stem_act(self.stem_norm(x)))
        x = self.output_norm(self.trunk(x).mean(dim=(2, 3)))  # (N, F)
        y = x.new_zeros(*real.shape, self.output_size)
        y[real] = x
        return y, lengths
