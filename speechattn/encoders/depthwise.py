"""Depthwise convolution over time that never reads padding, and is quick on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechattn.masks import padding_mask


class DepthwiseConv(nn.Conv1d):
    """One filter a channel, as many frames out as in; frames beyond an item's length count as zero.

    Args:
        channels: C.
        kernel: K in frames, odd.
    """

    def __init__(self, channels: int, kernel: int):
        if kernel % 2 == 0:
            raise ValueError(f"DepthwiseConv: the kernel must be odd, not {kernel}")
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (B, T, C).
            lengths: (B,).

        Returns:
            (B, T, C).
        """
        x = x.masked_fill(~padding_mask(lengths, x.shape[1])[..., None], 0.0)
        if x.device.type != "cpu":
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        # Never in half precision: oneDNN's bfloat16 kernel hangs at some shapes (7 x 82 frames of
        # 144 channels, torch 2.14), and at these sizes it is no faster.
        with torch.autocast("cpu", enabled=False):
            needs_grad = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
            convolve = _CpuConvolution.apply if needs_grad else _convolve
            wide = torch.promote_types(x.dtype, torch.float32)
            weight, bias = self.weight.to(wide), self.bias.to(wide)
            return convolve(x.to(wide), weight, bias).to(x.dtype)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (B, T, C), weight (C, 1, K) to (B, T, C).

    (B, T, C) in memory is a channels-last picture of height 1, for which oneDNN has a kernel 10 to
    20 times faster than that of a one-dimensional convolution, and nothing is transposed.
    """
    padding = (0, weight.shape[-1] // 2)
    y = functional.conv2d(
        x.transpose(1, 2)[:, :, None],  # (B, C, 1, T)
        weight[:, :, None],
        bias,
        padding=padding,
        groups=weight.shape[0],
    )
    return y[:, :, 0].transpose(1, 2)


class _CpuConvolution(torch.autograd.Function):
    """`_convolve` with the fastest layout for each gradient: along the width for the input's,
    along the height for the weight's (5 times faster than along the width).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _gradient(grad, x, weight, axis=2, wanted=0).squeeze(2).transpose(1, 2)
        if ctx.needs_input_grad[1]:
            grad_weight = _gradient(grad, x, weight, axis=3, wanted=1).squeeze(3)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 1))
        return grad_x, grad_weight, grad_bias


def _gradient(grad: Tensor, x: Tensor, weight: Tensor, axis: int, wanted: int) -> Tensor:
    """Gradient of x (wanted 0) or of weight (1), with time along the axis that is not `axis`."""
    reach = weight.shape[-1] // 2
    return torch.ops.aten.convolution_backward(
        grad.transpose(1, 2).unsqueeze(axis),
        x.transpose(1, 2).unsqueeze(axis),
        weight.unsqueeze(axis),
        None,
        [1, 1],
        [0, reach] if axis == 2 else [reach, 0],
        [1, 1],
        False,
        [0, 0],
        weight.shape[0],
        [wanted == 0, wanted == 1, False],
    )[wanted]
