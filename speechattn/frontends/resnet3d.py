"""ResNet3D: a 3-D convolutional stem and a 2-D ResNet trunk over mouth crops.

The visual frontend of the published lip-reading systems (Stafylakis & Tzimiropoulos, 1703.04105;
Ma et al., 2102.06657): one 5x7x7 convolution captures short motion, then an ImageNet-style ResNet
describes each frame.

Frames go through the network packed: P real frames of all clips in a row, none of padding.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from speechattn.errors import ConfigError
from speechattn.frontends.activation import Activation, make_activation
from speechattn.frontends.base import Frontend, Reach
from speechattn.frontends.temporal import Clips, OverTime
from speechattn.masks import padding_mask

Normalisation = Literal["fixed", "clip"]


def unpack(y: Tensor, lengths: Tensor, frames: int) -> Tensor:
    """Unpack y (P, F) to (B, T, F) with T = `frames`; zero beyond an item's length."""
    if int(lengths.min()) >= frames:
        return y.unflatten(0, (-1, frames))
    padded = y.new_zeros(len(lengths), frames, y.shape[-1])
    padded[padding_mask(lengths, frames)] = y
    return padded


class FrameWindows(nn.Module):
    """Crops to the window of normalised pictures that the stem reads for each frame.

    Args:
        normalise: see `ResNet3D`, as for mean, std and pool_input.
        frames: an odd number, the pictures in a window; its own in the middle.
    """

    def __init__(
        self, normalise: Normalisation, mean: float, std: float, pool_input: int, frames: int = 5
    ):
        super().__init__()
        self.normalise = normalise
        self.mean, self.std = mean, std
        self.pool_input, self.frames = pool_input, frames

    def pictures(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise crops and find the windows.

        Args:
            x: (B, T, C, H, W) in [0, 255].
            lengths: (B,) frames of each clip.

        Returns:
            (B (T + 2 edge), C, H, W) normalised pictures with blank ones around every clip, and
            where among them the window of each real frame begins, (P,).
        """
        longest = max(int(lengths.max()), 1)
        x = x[:, :longest].float()
        if self.pool_input > 1:
            x = nn.functional.avg_pool2d(x.flatten(0, 1), self.pool_input).unflatten(0, x.shape[:2])
        x = x / 255.0
        if self.normalise == "fixed":
            x = (x - self.mean) / self.std
        # Beyond its end a clip is what it is alone: the convolution's zero padding.
        real = padding_mask(lengths, longest)
        mask = real[:, :, None, None, None]
        if not real.all():
            x = x * mask
        if self.normalise == "clip":
            frames = lengths.clamp(min=1)[:, None, None, None, None]
            x = (x - x.sum(1, keepdim=True) / frames) * mask
            power = x.square().sum(1, keepdim=True).mean((2, 3, 4), keepdim=True) / frames
            x = x / power.clamp(min=1e-8).sqrt()
        edge = self.frames // 2
        x = nn.functional.pad(x, (0, 0) * 3 + (edge, edge))  # (B, T + 2 edge, C, H, W)
        item, frame = real.nonzero(as_tuple=True)  # (P,) each
        return x.flatten(0, 1), item * x.shape[1] + frame

    def gather(self, pictures: Tensor, first: Tensor) -> Tensor:
        """Gather the windows that begin at first (P,): (P, frames * C, H, W), channels last."""
        index = first[:, None] + torch.arange(self.frames, device=first.device)
        x = pictures.index_select(0, index.flatten())
        x = x.unflatten(0, (-1, self.frames)).flatten(1, 2)  # (P, frames * C, H, W)
        return x.contiguous(memory_format=torch.channels_last)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 1512.03385), on (P, C, H, W)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, activation: Activation):
        super().__init__()
        self.conv1: nn.Module = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.act1 = make_activation(activation, channels)
        self.conv2: nn.Module = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.act2 = make_activation(activation, channels)
        self.shortcut = make_shortcut(in_channels, channels, stride)

    def branch(self) -> list[nn.Module]:
        """Return the layers of the residual branch, in order."""
        return [self.conv1, self.norm1, self.act1, self.conv2, self.norm2]

    @property
    def last_act(self) -> nn.Module:
        """Return the non-linearity over the sum of branch and shortcut."""
        return self.act2

    def forward(self, x: Tensor, clips: Clips | None = None) -> Tensor:
        """Map x (P, C, H, W) to (P, O, H', W'); layers over time need to know where clips end."""
        y = x
        for layer in self.branch():
            y = layer(y, clips) if isinstance(layer, OverTime) else layer(y)
        return self.last_act(self.drop_branch(y, clips) + self.shortcut(x))

    def drop_branch(self, y: Tensor, clips: Clips | None) -> Tensor:
        """Apply stochastic depth to the branch's output (P, O, H', W'); none here."""
        return y


class Bottleneck(BasicBlock):
    """1x1, 3x3 and 1x1 convolutions (He et al., 1512.03385); four times as wide as `channels`.

    The 3x3 convolution has the stride, as in every ImageNet ResNet-50 since Torch's.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, activation: Activation):
        nn.Module.__init__(self)
        out = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.act1 = make_activation(activation, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.act2 = make_activation(activation, channels)
        self.conv3 = nn.Conv2d(channels, out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out)
        self.act3 = make_activation(activation, out)
        self.shortcut = make_shortcut(in_channels, out, stride)

    def branch(self) -> list[nn.Module]:
        return [*super().branch(), self.act2, self.conv3, self.norm3]

    @property
    def last_act(self) -> nn.Module:
        return self.act3


def make_shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    """Make the way around a block: nothing, or a 1x1 convolution where size or width change."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
    )


def stack_kernel(weight: Tensor) -> Tensor:
    """Return a 3-D kernel (O, C, frames, k, k) as the 2-D one over frames stacked as channels."""
    return weight.transpose(1, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)


class PackedFrontend(Frontend):
    """A frontend that describes pictures one by one, each from a window of pictures around it.

    Attributes:
        windows: crops to the window of each frame.
        layers_over_time: layers after them that read the frames next to one.
        output_norm: of each frame's vector.
    """

    windows: FrameWindows
    layers_over_time: int
    output_norm: nn.Module

    def describe(self, pictures: Tensor, first: Tensor, clips: Clips | None) -> Tensor:
        """Compute the vector of each window, before the output norm.

        Args:
            pictures: see `FrameWindows.pictures`.
            first: (P,), where each window begins.
            clips: of the windows; None where no layer reads other frames.

        Returns:
            (P, output_size).
        """
        raise NotImplementedError

    def reach(self) -> Reach:
        if self.windows.normalise == "clip":
            raise ConfigError(
                "`normalise: clip` needs the whole utterance; train with `normalise: fixed`, or "
                "transcribe files"
            )
        side = self.windows.frames // 2 + self.layers_over_time
        return Reach(1, side, side)

    def forward_slice(self, x: Tensor, start: int, stop: int) -> Tensor:
        if self.layers_over_time or len(x) > 1:
            return super().forward_slice(x, start, stop)
        # Pictures at the ends of windows only need no trunk of their own.
        pictures, first = self.windows.pictures(x, torch.tensor([x.shape[1]], device=x.device))
        return self.output_norm(self.describe(pictures, first[start:stop], None))[None]


class PackedResNet(PackedFrontend):
    """A ResNet over packed frames; all but the first stage begin by halving the picture.

    Args:
        windows: crops to the window of each frame.
        stem: a 3-D convolution, and what follows it frame by frame.
        make_block: (stage, input width, inner width, stride) to a block.
        stem_channels: width of the stem's output.
        channels: inner width of each stage.
        blocks: how many blocks a stage has.
        expansion: output width of a block over its inner width.
        activation: after the stem.
        output_norm: batch norm on each frame's vector.
    """

    def __init__(
        self,
        windows: FrameWindows,
        stem: Sequence[nn.Module],
        make_block: Callable[[int, int, int, int], nn.Module],
        *,
        stem_channels: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        expansion: int,
        activation: Activation,
        output_norm: bool,
    ):
        super().__init__()
        trunk, width = [], stem_channels
        for stage, (inner, depth) in enumerate(zip(channels, blocks, strict=True)):
            for index in range(depth):
                trunk.append(make_block(stage, width, inner, 2 if stage and not index else 1))
                width = inner * expansion
        self.windows = windows
        self.stem = nn.Sequential(*stem)
        self.stem_norm = nn.BatchNorm2d(stem_channels)
        self.stem_act = make_activation(activation, stem_channels)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.trunk = nn.Sequential(*trunk)
        self.output_size = width
        self.output_norm = nn.BatchNorm1d(width) if output_norm else nn.Identity()
        self.layers_over_time = sum(isinstance(layer, OverTime) for layer in self.modules())

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map crops (B, T, C, H, W), uint8 or float in [0, 255], and lengths (B,) to vectors.

        Returns:
            (B, T, output_size) and the same lengths; padded frames are zero.
        """
        y = self.describe(*self.windows.pictures(x, lengths), Clips.of(lengths))
        return unpack(self.output_norm(y), lengths, x.shape[1]), lengths

    def describe(self, pictures: Tensor, first: Tensor, clips: Clips | None) -> Tensor:
        y = self.apply_stem(self.windows.gather(pictures, first))  # (P, C, H/4, W/4)
        for block in self.trunk:
            y = block(y, clips)
        return y.mean(dim=(2, 3))

    def apply_stem(self, x: Tensor) -> Tensor:
        """Map x (P, 5 * C, H, W) to (P, stem_channels, H/4, W/4), channels last."""
        first = self.stem[0]
        # The same sums as the 3-D convolution's, on frames stacked as channels: no frame of
        # padding is convolved, and the backward pass is quicker.
        shape = first.stride[1:], first.padding[1:]
        x = nn.functional.conv2d(x, stack_kernel(first.weight), None, *shape)
        x = self.stem[1:](x.contiguous(memory_format=torch.channels_last))
        return self.pool(self.stem_act(self.stem_norm(x)))


class ResNet3D(PackedResNet):
    """Mouth crops to one vector a frame.

    Crops may be of any size from 24x24 or so up; 88x88 is the published one.

    Args:
        stem_channels: output channels of the 3-D convolution.
        channels: width of the four trunk stages; the last, times four for bottlenecks, is the
            output size.
        blocks: residual blocks in each stage; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) is ResNet-34
            or, of bottlenecks, ResNet-50.
        activation: the non-linearity; published lip readers use swish or PReLU.
        image_channels: 1 for grey crops, 3 for colour.
        normalise: 'fixed' takes `mean` away and divides by `std`, as published models do; 'clip'
            takes each pixel's mean over the clip away and divides by the deviation of what is
            left, so that the network gets what moves rather than the face that does not (our
            own, for little data; needs the whole clip).
        output_norm: batch norm on each frame's vector, for the same reason (our own).
        mean: pixel mean after scaling to [0, 1].
        std: pixel standard deviation after scaling to [0, 1].
        pool_input: average pixels in squares of this side first. 1 is the published network; the
            recipes that must train on a CPU use 2.
        block: what a residual block is.
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
    ):
        kind = BasicBlock if block == "basic" else Bottleneck

        def make_block(stage: int, width: int, inner: int, stride: int) -> nn.Module:
            return kind(width, inner, stride, activation)

        super().__init__(
            FrameWindows(normalise, mean, std, pool_input),
            plain_stem(image_channels, stem_channels),
            make_block,
            stem_channels=stem_channels,
            channels=channels,
            blocks=blocks,
            expansion=kind.expansion,
            activation=activation,
            output_norm=output_norm,
        )


def plain_stem(image_channels: int, channels: int) -> list[nn.Module]:
    """Make the published stem: one convolution over 5 frames of 7x7 pixels."""
    return [
        nn.Conv3d(image_channels, channels, (5, 7, 7), (1, 2, 2), padding=(2, 3, 3), bias=False)
    ]
