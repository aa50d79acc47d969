"""A 1-D ResNet-18 over the raw waveform (Petridis et al. 1802.06424; Ma et al. 2102.06657)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechattn.frontends.activation import Activation, make_activation
from speechattn.frontends.base import Frontend
from speechattn.masks import padding_mask

SAMPLES_PER_FRAME = 640  # 25 Hz at 16 kHz: one output for each video frame
VARIANCE_FLOOR = 1e-8  # what the published models add to the variance of the waveform


class BasicBlock1d(nn.Module):
    """Two convolutions of width 3 and a shortcut, on (B, C, N).

    `forward` keeps all but the real positions at zero, so that an item is followed by what the
    convolution's own padding would be.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, activation: Activation):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv1d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = MaskedBatchNorm1d(channels)
        self.act1 = make_activation(activation, channels)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = MaskedBatchNorm1d(channels)
        self.act2 = make_activation(activation, channels)
        self.shortcut: nn.Conv1d | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv1d(in_channels, channels, 1, stride, bias=False)
            self.shortcut_norm = MaskedBatchNorm1d(channels)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x), real))
        y = self.norm2(self.conv2(y), real)
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x), real)
        return self.act2(y + x)


class MaskedBatchNorm1d(nn.BatchNorm1d):
    """Batch norm whose statistics count real positions only; the others come out as zero."""

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Normalise x (B, C, N) where real (B, N) bool, to (B, C, N)."""
        rows = x.transpose(1, 2)
        y = torch.zeros_like(rows)
        y[real] = super().forward(rows[real]).to(y.dtype)
        return y.transpose(1, 2)


class Conv1dResNet(Frontend):
    """Waveform at 16 kHz to one vector every 40 ms.

    Args:
        channels: width of the four stages; the last is the output size.
        blocks: residual blocks in each stage; (2, 2, 2, 2) is ResNet-18.
        activation: the non-linearity.
    """

    sample_rate = 16000
    frame_shift = SAMPLES_PER_FRAME / sample_rate

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
        activation: Activation = "swish",
    ):
        super().__init__()
        self.output_size = channels[-1]
        self.stem = nn.Conv1d(1, channels[0], 80, stride=4, padding=38, bias=False)
        self.stem_norm = MaskedBatchNorm1d(channels[0])
        self.stem_act = make_activation(activation, channels[0])
        trunk = []
        width = channels[0]
        for i, (out, depth) in enumerate(zip(channels, blocks, strict=True)):
            for j in range(depth):
                trunk.append(BasicBlock1d(width, out, 2 if i > 0 and j == 0 else 1, activation))
                width = out
        self.trunk = nn.ModuleList(trunk)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a feature for each 40 ms of sound.

        Args:
            x: (B, N) waveform.
            lengths: (B,) samples of each item; all are counted when the waveform is brought to
                mean 0 and variance 1, then a last part shorter than a frame is dropped.

        Returns:
            (B, N // 640, output_size), at least one frame wide, and (B,) frames.
        """
        if x.shape[1] < SAMPLES_PER_FRAME:
            x = nn.functional.pad(x, (0, SAMPLES_PER_FRAME - x.shape[1]))
        real = padding_mask(lengths, x.shape[1])
        count = real.sum(1, keepdim=True).clamp(min=1)
        x = x * real
        x = (x - x.sum(1, keepdim=True) / count) * real
        x = x / (x.square().sum(1, keepdim=True) / count + VARIANCE_FLOOR).sqrt()
        # Whole frames from here on, so that every stride below divides and lengths stay exact.
        frames = lengths // SAMPLES_PER_FRAME
        samples = frames * SAMPLES_PER_FRAME
        x = x[:, : x.shape[1] // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]
        x = x * padding_mask(samples, x.shape[1])

        real = padding_mask(samples // 4, x.shape[1] // 4)
        x = self.stem_act(self.stem_norm(self.stem(x[:, None]), real))  # (B, C, N/4)
        for block in self.trunk:
            real = real[:, :: block.stride]
            x = block(x, real)
        x = nn.functional.avg_pool1d(x, 20).transpose(1, 2)  # (B, T, F)
        return x, frames
