"""Visual frontends for inference: batch norms folded, layers fused, arithmetic in bfloat16.

`fold_frontend(frontend)` gives a frontend with the same interface and the same numbers to 1e-4. On
a CPU with bfloat16 instructions, precision "bf16" is faster, for features that differ in the third
digit. "mixed" lies between the two: only the first layers, whose large pictures Winograd's
convolutions do not help, are in bfloat16, so that less rounding adds up.
"""

import copy
import logging
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from speechattn.errors import ConfigError
from speechattn.frontends.base import Frontend
from speechattn.frontends.resnet3d import (
    BasicBlock,
    PackedFrontend,
    PackedResNet,
    stack_kernel,
    unpack,
)
from speechattn.frontends.temporal import Clips, OverTime
from speechattn.frontends.winograd import WORTHWHILE, WinogradConv

Precision = Literal["fp32", "mixed", "bf16"]

logger = logging.getLogger(__name__)

# Frames that go through the network at once: enough to share the reading of weights, few enough to
# keep memory bounded.
FRAMES_AT_ONCE = 64

# oneDNN's convolutions fused with what follows them; torch.compile emits the same calls.
_NEEDED = (
    "_convolution_pointwise _convolution_pointwise_ _reorder_convolution_weight "
    "_is_mkldnn_bf16_supported"
)
FUSED = all(hasattr(torch.ops.mkldnn, name) for name in _NEEDED.split())
FUSED_NAMES = {nn.ReLU: "relu", nn.SiLU: "swish"}


def can_fuse(x: Tensor) -> bool:
    """Return whether oneDNN's fused convolutions take this input."""
    if not FUSED or x.device.type != "cpu" or 0 in x.shape or not torch.backends.mkldnn.enabled:
        return False
    return x.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class FoldedConv(nn.Module):
    """A convolution with its batch norm folded into its weights, then a sum and a non-linearity.

    Args:
        conv: the convolution; the stem's 3-D one becomes a 2-D one over stacked frames.
        norm, act: the batch norm and the non-linearity after it, if there are any.
        dtype: of the arithmetic.
    """

    def __init__(
        self,
        conv: nn.Conv2d | nn.Conv3d,
        norm: nn.BatchNorm2d | None,
        act: nn.Module | None,
        dtype: torch.dtype,
    ):
        super().__init__()
        weight = conv.weight.detach()
        if weight.dim() == 5:
            weight = stack_kernel(weight)
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()
        if norm is not None:
            # In double precision, as the quotient of two rounded numbers would be off.
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            weight = weight.double() * scale[:, None, None, None]
            bias = norm.bias.double() + (bias.double() - norm.running_mean.double()) * scale
        weight = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias.detach().to(dtype))
        self.stride, self.padding = list(conv.stride[-2:]), list(conv.padding[-2:])
        self.groups = conv.groups
        self.act = copy.deepcopy(act).to(dtype) if act is not None else None
        self.fused_name = FUSED_NAMES.get(type(act), "none")
        self.winograd: WinogradConv | None = None
        shape = (weight.dtype, conv.kernel_size, *conv.stride, *conv.padding, conv.groups)
        if shape == (torch.float32, (3, 3), 1, 1, 1, 1, 1) and min(weight.shape[:2]) >= WORTHWHILE:
            self.winograd = WinogradConv(weight, self.bias)
        self.packed: Tensor | None = None  # the weights in oneDNN's layout

    def __getstate__(self) -> dict:
        return {**self.__dict__, "packed": None}  # cannot be copied or saved

    def forward(self, x: Tensor, total: Tensor | None = None) -> Tensor:
        """Map x (P, C, H, W) to (P, O, H', W').

        `total` (P, O, H', W'), which is overwritten, is added before the non-linearity.
        """
        if self.winograd is not None or not can_fuse(x):
            y = self.winograd(x) if self.winograd is not None else self.convolve(x)
            y = y if total is None else y.add_(total)
            return y if self.act is None else self.act(y)
        ops = torch.ops.mkldnn
        shape = (self.padding, self.stride, [1, 1], self.groups)
        if self.packed is None:
            self.packed = ops._reorder_convolution_weight(self.weight, *shape, list(x.shape))
        args = (self.packed, self.bias, *shape)
        if total is None:
            y = ops._convolution_pointwise(x, *args, self.fused_name, [], "")
            return y if self.act is None or self.fused_name != "none" else self.act(y)
        # The only non-linearity that oneDNN fuses after a sum.
        name = "relu" if self.fused_name == "relu" else None
        y = ops._convolution_pointwise_.binary(total, x, *args, "add", 1.0, name, [], "")
        return y if self.act is None or name else self.act(y)

    def convolve(self, x: Tensor) -> Tensor:
        shape = (self.stride, self.padding, 1, self.groups)
        return nn.functional.conv2d(x, self.weight, self.bias, *shape)


def fold_layers(layers: Sequence[nn.Module], dtype: torch.dtype) -> list[nn.Module]:
    """Fuse every convolution with the norm and the non-linearity after it."""
    folded: list[nn.Module] = []
    rest = [layer for layer in layers if not isinstance(layer, nn.Identity)]
    while rest:
        layer = rest.pop(0)
        if not isinstance(layer, nn.Conv2d | nn.Conv3d):
            folded.append(copy.deepcopy(layer).to(dtype).eval())
            continue
        norm = rest.pop(0) if rest and isinstance(rest[0], nn.BatchNorm2d) else None
        act = rest.pop(0) if rest and isinstance(rest[0], nn.ReLU | nn.SiLU | nn.PReLU) else None
        folded.append(FoldedConv(layer, norm, act, dtype))
    return folded


class FoldedBlock(nn.Module):
    """A residual block without its norms; the last convolution adds the shortcut."""

    def __init__(self, block: BasicBlock, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        layers = [layer for layer in block.branch() if not isinstance(layer, nn.Identity)]
        ends = isinstance(layers[-1], nn.BatchNorm2d) and isinstance(layers[-2], nn.Conv2d)
        self.act = None if ends else copy.deepcopy(block.last_act).to(dtype)
        layers = [*layers, block.last_act] if ends else layers
        self.branch = nn.ModuleList(fold_layers(layers, dtype))
        # A shortcut is an Identity or a sequence.
        self.shortcut = nn.Sequential(*fold_layers(list(block.shortcut.children()), dtype))

    def forward(self, x: Tensor, clips: Clips | None) -> Tensor:
        """Map x (P, C, H, W), which is overwritten, to (P, O, H', W')."""
        y = x
        for layer in self.branch[:-1]:
            y = layer(y, clips) if isinstance(layer, OverTime) else layer(y)
        if self.act is None:
            return self.branch[-1](y, self.shortcut(x))
        return self.act(self.branch[-1](y).add_(self.shortcut(x)))


class FoldedResNet(PackedFrontend):
    """A copy of a ResNet over frames, folded, without training mode and gradients.

    `precision` is that of `fold_frontend`; features come out as float32 in any case.
    """

    def __init__(self, source: PackedResNet, precision: Precision):
        super().__init__()
        self.output_size = source.output_size
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16  # of the stem
        # In a ResNet-18 a quarter of the blocks is the first stage.
        low = {"fp32": 0, "mixed": len(source.trunk) // 4, "bf16": len(source.trunk)}[precision]
        dtypes = [self.dtype] * low + [torch.float32] * (len(source.trunk) - low)
        self.windows = copy.deepcopy(source.windows)
        stem = [*source.stem, source.stem_norm, source.stem_act]
        self.stem = nn.Sequential(*fold_layers(stem, self.dtype))
        self.pool = copy.deepcopy(source.pool)
        self.trunk = nn.ModuleList(map(FoldedBlock, source.trunk, dtypes))
        self.output_norm = copy.deepcopy(source.output_norm)
        self.layers_over_time = source.layers_over_time
        self.eval()

    def train(self, mode: bool = True) -> "FoldedResNet":
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Describe each frame, as `PackedResNet.forward` does."""
        pictures, first = self.windows.pictures(x, lengths)
        # A layer that looks along time needs all frames of a clip.
        clips = Clips.of(lengths) if self.layers_over_time else None
        parts = [first] if self.layers_over_time else first.split(FRAMES_AT_ONCE)
        y = torch.cat([self.describe(pictures, part, clips) for part in parts])  # (P, F)
        return unpack(self.output_norm(y), lengths, x.shape[1]), lengths

    def describe(self, pictures: Tensor, first: Tensor, clips: Clips | None) -> Tensor:
        y = self.pool(self.stem(self.windows.gather(pictures, first).to(self.dtype)))
        for block in self.trunk:
            y = block(y.to(block.dtype), clips)
        return y.mean((2, 3), dtype=torch.float32)


def has_bf16_instructions() -> bool:
    """Return whether PyTorch finds bfloat16 instructions in this processor."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return ask is not None and ask()


def fold_frontend(frontend: Frontend, precision: Precision = "fp32") -> Frontend:
    """Make a trained frontend ready for inference on a CPU.

    Args:
        frontend: a `ResNet3D` or `EnhancedResNet3D`; any other comes back as it is.
        precision: 'fp32' keeps the numbers to 1e-4; 'mixed' computes the stem and the first quarter
            of the blocks in bfloat16, 'bf16' everything.

    Returns:
        A frontend with the same interface, in evaluation mode for good.

    Raises:
        ConfigError: an unknown precision.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision: one of {', '.join(get_args(Precision))}, not {precision!r}")
    if not isinstance(frontend, PackedResNet):
        return frontend
    if precision != "fp32" and not has_bf16_instructions():
        logger.warning("this processor has no bfloat16 instructions: %r may be slower", precision)
    return FoldedResNet(frontend, precision)
