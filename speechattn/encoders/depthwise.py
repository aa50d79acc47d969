"""Depthwise convolution over time that never reads padding, streams, and is quick on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechattn.masks import Chunks, without_padding


class DepthwiseConv(nn.Conv1d):
    """One filter a channel, as many frames out as in; frames beyond an item's length count as zero.

    A frame reads K // 2 frames to either side. Where the sequence comes in chunks it reads as far
    to the left as that, chunk borders or not, and to the right no further than its chunk goes, so
    that weights trained on whole sequences stream too (dynamic chunk convolution, 2304.09325). A
    causal one reads K - 1 frames to the left and none to the right, and chunks change nothing.

    Args:
        channels: C.
        kernel: K in frames, odd.
        causal: read nothing to the right of a frame.
    """

    def __init__(self, channels: int, kernel: int, causal: bool = False):
        if kernel % 2 == 0:
            raise ValueError(f"DepthwiseConv: the kernel must be odd, not {kernel}")
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.causal = causal
        self.left = kernel - 1 if causal else kernel // 2
        self.right = kernel - 1 - self.left

    def forward(self, x: Tensor, lengths: Tensor, chunks: Chunks | None = None) -> Tensor:
        """Convolve x (B, T, C), with lengths (B,), to (B, T, C); within chunks if there are any."""
        x = without_padding(x, lengths)
        if self.causal:
            return self._convolve(functional.pad(x, (0, 0, self.left, 0)), padding=0)
        if chunks is None or chunks.size >= x.shape[1]:
            return self._convolve(x, padding=self.left)
        return self._by_chunk(x, chunks.size)

    def init_state(self, batch: int) -> Tensor:
        """Return the zeros before B streams, (B, left, C)."""
        return self.weight.new_zeros(batch, self.left, self.in_channels)

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve the next chunk (B, c, C), after the frames `past` (B, left, C), to (B, c, C).

        Returns also the frames (B, left, C) before the chunk after this one.
        """
        x = torch.cat((past, x), dim=1)
        y = self._convolve(functional.pad(x, (0, 0, 0, self.right)), padding=0)
        return y, x[:, x.shape[1] - self.left :]

    def _by_chunk(self, x: Tensor, size: int) -> Tensor:
        """Convolve every chunk as an item of its own, with the frames before it."""
        batch, frames, channels = x.shape
        count = -(-frames // size)
        x = functional.pad(x, (0, 0, self.left, count * size - frames))
        x = x.unfold(1, self.left + size, size)  # (B, n, C, left + size)
        x = x.reshape(batch * count, channels, -1).transpose(1, 2)  # (B n, left + size, C)
        y = self._convolve(functional.pad(x, (0, 0, 0, self.right)), padding=0)
        return y.reshape(batch, count * size, channels)[:, :frames]

    def _convolve(self, x: Tensor, padding: int) -> Tensor:
        """Convolve x (B, T, C) with `padding` zeros on both ends."""
        if x.device.type != "cpu":
            x = x.transpose(1, 2)
            y = functional.conv1d(x, self.weight, self.bias, padding=padding, groups=self.groups)
            return y.transpose(1, 2)
        # Never in half precision: oneDNN's bfloat16 kernel hangs at some shapes (7 x 82 frames of
        # 144 channels, torch 2.14), and at these sizes it is no faster.
        with torch.autocast("cpu", enabled=False):
            needs_grad = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
            convolve = _CpuConvolution.apply if needs_grad else _convolve
            wide = torch.promote_types(x.dtype, torch.float32)
            weight, bias = self.weight.to(wide), self.bias.to(wide)
            return convolve(x.to(wide), weight, bias, padding).to(x.dtype)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """Convolve x (B, T, C) by weight (C, 1, K), to (B, T + 2 padding - K + 1, C)."""
    # (B, T, C) in memory is a channels-last picture of height 1, for which oneDNN has a kernel 10
    # to 20 times faster than that of a one-dimensional convolution, and nothing is transposed.
    x, weight = x.transpose(1, 2)[:, :, None], weight[:, :, None]  # (B, C, 1, T)
    y = functional.conv2d(x, weight, bias, padding=(0, padding), groups=weight.shape[0])
    return y[:, :, 0].transpose(1, 2)


class _CpuConvolution(torch.autograd.Function):
    """`_convolve` with the fastest layout for each gradient: the width for x, else the height."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return _convolve(x, weight, bias, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _gradient(grad, x, weight, ctx.padding, axis=2, wanted=0)
            grad_x = grad_x.squeeze(2).transpose(1, 2)
        if ctx.needs_input_grad[1]:
            grad_weight = _gradient(grad, x, weight, ctx.padding, axis=3, wanted=1).squeeze(3)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 1))
        return grad_x, grad_weight, grad_bias, None


def _gradient(
    grad: Tensor, x: Tensor, weight: Tensor, padding: int, axis: int, wanted: int
) -> Tensor:
    """Return the gradient of x (wanted 0) or of weight (1), with `axis` (2 or 3) of size 1."""
    return torch.ops.aten.convolution_backward(
        grad.transpose(1, 2).unsqueeze(axis),
        x.transpose(1, 2).unsqueeze(axis),
        weight.unsqueeze(axis),
        None,
        *([1, 1], [0, padding] if axis == 2 else [padding, 0], [1, 1], False, [0, 0]),
        weight.shape[0],
        [wanted == 0, wanted == 1, False],
    )[wanted]
