"""Channel and spatial attention inside a residual branch: each frame weighs its own features.

Every module maps (P, C, H, W) to the same shape, each picture by itself, so neither padding nor a
neighbouring clip can change the features of a frame.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

AttentionName = Literal["none", "se", "eca", "cbam", "triplet", "split"]

REDUCTION = 16
NARROWEST = 4  # units of a squeezed layer, however narrow the network


class SqueezeExcite(nn.Module):
    """A gate a channel, from all channels' means (Hu et al., 1709.01507)."""

    def __init__(self, channels: int):
        super().__init__()
        squeezed = max(channels // REDUCTION, NARROWEST)
        self.down = nn.Linear(channels, squeezed)
        self.up = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(torch.relu(self.down(x.mean((2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


class EfficientChannelAttention(nn.Module):
    """A gate a channel, from its own and its neighbours' means (Wang et al., 1910.03151)."""

    def __init__(self, channels: int):
        super().__init__()
        width = int(abs((math.log2(channels) + 1) / 2))
        width += 1 - width % 2  # odd
        self.conv = nn.Conv1d(1, 1, width, padding=width // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3))[:, None])[:, 0].sigmoid()
        return x * gate[:, :, None, None]


class PlaneGate(nn.Module):
    """A gate for each cell of a plane, from maximum and mean along the axis across it.

    The momentum of the norm is that of the authors' code, of CBAM's (`Jongchan/attention-module`)
    as of triplet attention's (`landskape-ai/triplet-attention`).
    """

    def __init__(self, axis: int):
        super().__init__()
        self.axis = axis
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack([x.amax(self.axis), x.mean(self.axis)], dim=1)  # (P, 2, plane)
        gate = self.norm(self.conv(pooled)).sigmoid()[:, 0]
        return x * gate.unsqueeze(self.axis)


class ConvolutionalBlockAttention(nn.Module):
    """CBAM: a gate a channel, then a gate a pixel (Woo et al., 1807.06521).

    As in the authors' code, a batch norm that the paper does not mention follows the filter of the
    gate of pixels.
    """

    def __init__(self, channels: int):
        super().__init__()
        squeezed = max(channels // REDUCTION, NARROWEST)
        self.mlp = nn.Sequential(
            nn.Linear(channels, squeezed), nn.ReLU(inplace=True), nn.Linear(squeezed, channels)
        )
        self.spatial = PlaneGate(1)

    def forward(self, x: Tensor) -> Tensor:
        gate = (self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))).sigmoid()
        return self.spatial(x * gate[:, :, None, None])


class TripletAttention(nn.Module):
    """Gates on the planes channel-width, channel-height and height-width (Misra, 2010.03045)."""

    def __init__(self):
        super().__init__()
        self.gates = nn.ModuleList([PlaneGate(2), PlaneGate(3), PlaneGate(1)])

    def forward(self, x: Tensor) -> Tensor:
        return sum(gate(x) for gate in self.gates) / len(self.gates)


class SplitConv(nn.Module):
    """A 3x3 convolution of two splits, mixed channel by channel (ResNeSt; Zhang, 2004.08955).

    One cardinal group; the stride stays in the convolution.
    """

    RADIX = 2

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        both = self.RADIX * channels
        squeezed = max(both // 4, 32)
        groups = math.gcd(self.RADIX, in_channels)
        self.conv = nn.Conv2d(in_channels, both, 3, stride, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(both)
        self.down = nn.Linear(channels, squeezed)
        self.down_norm = nn.BatchNorm1d(squeezed)
        self.up = nn.Linear(squeezed, both)

    def forward(self, x: Tensor) -> Tensor:
        splits = torch.relu(self.norm(self.conv(x))).unflatten(1, (self.RADIX, -1))
        squeezed = torch.relu(self.down_norm(self.down(splits.sum(1).mean((2, 3)))))
        weight = self.up(squeezed).unflatten(1, (self.RADIX, -1)).softmax(1)
        return (splits * weight[..., None, None]).sum(1)


def make_attention(name: AttentionName, channels: int) -> nn.Module:
    """Make the attention that ends a residual branch; for 'split' and 'none' an identity."""
    if name == "triplet":
        return TripletAttention()
    kinds = {"se": SqueezeExcite, "eca": EfficientChannelAttention}
    kinds["cbam"] = ConvolutionalBlockAttention
    return kinds[name](channels) if name in kinds else nn.Identity()
