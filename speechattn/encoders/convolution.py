"""Convolution module of the Conformer (2005.08100, section 2.2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechattn.encoders.activation import Activation, activation_function
from speechattn.encoders.batch_norm import MaskedBatchNorm
from speechattn.encoders.depthwise import DepthwiseConv
from speechattn.masks import Chunks


def strided_lengths(lengths: Tensor, stride: int) -> Tensor:
    """Return the number of frames 0, s, 2s, ... among so many: ceil(n / s), (B,) to (B,)."""
    return (lengths + stride - 1) // stride


class ConvolutionModule(nn.Module):
    """Pointwise with GLU, depthwise, batch norm, activation, pointwise.

    Args:
        width: D.
        kernel: K of the depthwise convolution, odd.
        activation: after the batch norm; the paper's is Swish.
        causal: see `DepthwiseConv`.
        output_size: width of the output; D where None.
        stride: only every s-th frame comes out, without chunks (Efficient Conformer, 2109.01163).
    """

    def __init__(
        self,
        width: int,
        kernel: int = 31,
        activation: Activation = "swish",
        *,
        causal: bool = False,
        output_size: int | None = None,
        stride: int = 1,
    ):
        super().__init__()
        output_size = output_size or width
        self.stride = stride
        self.expand = nn.Linear(width, 2 * output_size)  # a pointwise convolution, time before D
        self.depthwise = DepthwiseConv(output_size, kernel, causal)
        self.norm = MaskedBatchNorm(output_size)
        self.contract = nn.Linear(output_size, output_size)
        self.activation = activation_function(activation)

    def forward(self, x: Tensor, lengths: Tensor, chunks: Chunks | None = None) -> Tensor:
        """Map x (B, T, D), with lengths (B,), to (B, ceil(T / s), output_size)."""
        x = functional.glu(self.expand(x), dim=-1)
        # All frames and then every s-th: this filter is a percent of the module's work, and the
        # one without a stride is the quick one.
        x = self.depthwise(x, lengths, chunks)[:, :: self.stride]
        x = self.norm(x, strided_lengths(lengths, self.stride))
        return self.contract(self.activation(x))

    def init_state(self, batch: int) -> Tensor:
        """Return the state of B streams that begin."""
        return self.depthwise.init_state(batch)

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Map the next chunk (B, c, D) to (B, c, D), and return the state after it."""
        x = functional.glu(self.expand(x), dim=-1)  # (B, c, D)
        x, past = self.depthwise.step(x, past)
        lengths = torch.full((x.shape[0],), x.shape[1], device=x.device)
        return self.contract(self.activation(self.norm(x, lengths))), past
