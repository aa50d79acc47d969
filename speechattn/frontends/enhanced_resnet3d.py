"""Enhanced ResNet3D: ResNet3D with published improvements of residual networks as switches.

The NPU-ASLP system of CNVSRC 2024 names an "Enhanced ResNet3D" without saying what it is. This
one is our own definition. With every switch off it is ResNet3D, parameter for parameter.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from speechattn.errors import ConfigError
from speechattn.frontends.activation import Activation, make_activation
from speechattn.frontends.channel_attention import AttentionName, SplitConv, make_attention
from speechattn.frontends.resnet3d import (
    BasicBlock,
    Bottleneck,
    FrameWindows,
    Normalisation,
    PackedResNet,
    plain_stem,
)
from speechattn.frontends.temporal import Clips, SpatioTemporalConv, TemporalName, TemporalShift


def deep_stem(image_channels: int, channels: int, activation: Activation) -> list[nn.Module]:
    """Make ResNet-D's stem, three 3x3 convolutions for one of 7x7 (1812.01187), 5 frames deep."""
    half = channels // 2
    return [
        nn.Conv3d(image_channels, half, (5, 3, 3), (1, 2, 2), padding=(2, 1, 1), bias=False),
        nn.BatchNorm2d(half),
        make_activation(activation, half),
        nn.Conv2d(half, half, 3, padding=1, bias=False),
        nn.BatchNorm2d(half),
        make_activation(activation, half),
        nn.Conv2d(half, channels, 3, padding=1, bias=False),
    ]


class Enhanced:
    """The switches of a residual block; comes before the block among the bases.

    Args:
        in_channels: width of the input; channels, stride, activation as of the block.
        attention: what weighs channels or pixels; 'split' replaces the last 3x3 convolution, the
            others end the residual branch.
        temporal: 'shift' shifts channels before the branch, 'conv' makes 3x3 convolutions (2+1)-D.
        pooled_shortcut: halve the shortcut by averaging rather than by skipping pixels.
        drop: chance in training that a clip goes by the shortcut alone.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        activation: Activation,
        *,
        attention: AttentionName,
        temporal: TemporalName,
        pooled_shortcut: bool,
        drop: float,
    ):
        super().__init__(in_channels, channels, stride, activation)
        self.drop = drop
        self.shift = TemporalShift() if temporal == "shift" else None
        self.attention = make_attention(attention, channels * self.expansion)
        if temporal == "conv":
            for name in ("conv1", "conv2"):
                old = getattr(self, name)
                if old.kernel_size == (3, 3):
                    shape = old.in_channels, old.out_channels, old.stride[0]
                    setattr(self, name, SpatioTemporalConv(*shape, activation))
        if attention == "split":
            stride2 = stride if isinstance(self, Bottleneck) else 1
            self.conv2 = SplitConv(channels, channels, stride2)
        if pooled_shortcut and stride > 1:
            _, norm = self.shortcut
            conv = nn.Conv2d(in_channels, norm.num_features, 1, bias=False)
            # The last row or column of an odd picture is averaged over what is there.
            pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
            self.shortcut = nn.Sequential(pool, conv, norm)

    def branch(self) -> list[nn.Module]:
        before = [] if self.shift is None else [self.shift]
        return [*before, *super().branch(), self.attention]

    def drop_branch(self, y: Tensor, clips: Clips) -> Tensor:
        if not self.training or self.drop == 0.0:
            return y
        kept = torch.rand(clips.count, device=y.device) >= self.drop
        return y * (kept / (1.0 - self.drop))[clips.item, None, None, None].to(y.dtype)


class EnhancedBasicBlock(Enhanced, BasicBlock):
    """A `BasicBlock` with switches."""


class EnhancedBottleneck(Enhanced, Bottleneck):
    """A `Bottleneck` with switches."""


class EnhancedResNet3D(PackedResNet):
    """Mouth crops to one vector a frame: a ResNet3D, whose arguments it takes, with improvements.

    Args:
        attention: of each stage: 'se' squeeze and excitation (1709.01507), 'eca' efficient channel
            attention (1910.03151), 'cbam' channels then pixels (1807.06521), 'triplet' three
            planes (2010.03045), 'split' two attended splits in place of a block's last 3x3
            convolution (2004.08955).
        temporal: of each stage: 'shift' moves a quarter of the channels by a frame (1811.08383),
            'conv' makes 3x3 convolutions (2+1)-D (1711.11248).
        stem: 'deep' is ResNet-D's three 3x3 convolutions (1812.01187).
        shortcut: 'pooled' is ResNet-D's average before the 1x1 convolution.
        stochastic_depth: chance in training that a clip skips the last block's branch; blocks
            before it skip less, in proportion to their depth (1603.09382).
    """

    def __init__(
        self,
        stem_channels: int = 64,
        channels: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
        activation: Activation = "swish",
        *,
        image_channels: int = 1,
        normalise: Normalisation = "fixed",
        output_norm: bool = False,
        mean: float = 0.421,
        std: float = 0.165,
        pool_input: int = 1,
        block: Literal["basic", "bottleneck"] = "basic",
        attention: Sequence[AttentionName] = ("none", "none", "none", "none"),
        temporal: Sequence[TemporalName] = ("none", "none", "none", "none"),
        stem: Literal["plain", "deep"] = "plain",
        shortcut: Literal["plain", "pooled"] = "plain",
        stochastic_depth: float = 0.0,
    ):
        kind = EnhancedBasicBlock if block == "basic" else EnhancedBottleneck
        for name, switches in (("attention", attention), ("temporal", temporal)):
            if len(switches) != len(channels):
                entries = f"{len(switches)} entries for {len(channels)} stages"
                raise ConfigError(f"EnhancedResNet3D: {name} has {entries}")
        if block == "bottleneck" and ("split", "conv") in zip(attention, temporal, strict=True):
            raise ConfigError(
                "EnhancedResNet3D: a bottleneck's one 3x3 convolution is either split "
                "(attention) or (2+1)-D (temporal), not both in one stage"
            )
        if not 0.0 <= stochastic_depth < 1.0:
            raise ConfigError(
                f"EnhancedResNet3D: stochastic_depth is from 0 up to 1, not {stochastic_depth}"
            )
        made = 0

        def make_block(stage: int, width: int, inner: int, stride: int) -> nn.Module:
            nonlocal made
            made += 1
            return kind(
                width,
                inner,
                stride,
                activation,
                attention=attention[stage],
                temporal=temporal[stage],
                pooled_shortcut=shortcut == "pooled",
                drop=stochastic_depth * made / sum(blocks),
            )

        super().__init__(
            FrameWindows(normalise, mean, std, pool_input),
            deep_stem(image_channels, stem_channels, activation)
            if stem == "deep"
            else plain_stem(image_channels, stem_channels),
            make_block,
            stem_channels=stem_channels,
            channels=channels,
            blocks=blocks,
            expansion=kind.expansion,
            activation=activation,
            output_norm=output_norm,
        )
