"""Convolution module of the Conformer (2005.08100, section 2.2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechattn.encoders.activation import Activation, activation_function
from speechattn.encoders.batch_norm import MaskedBatchNorm
from speechattn.encoders.depthwise import DepthwiseConv
from speechattn.masks import Chunks


class ConvolutionModule(nn.Module):
    """Pointwise with GLU, depthwise, batch norm, activation, pointwise.

    Args:
        width: D.
        kernel: K of the depthwise convolution, odd.
        activation: after the batch norm; the paper's is Swish.
        causal: see `DepthwiseConv`.
    """

    def __init__(
        self,
        width: int,
        kernel: int = 31,
        activation: Activation = "swish",
        causal: bool = False,
    ):
        super().__init__()
        self.expand = nn.Linear(width, 2 * width)  # a pointwise convolution, batch and time first
        self.depthwise = DepthwiseConv(width, kernel, causal)
        self.norm = MaskedBatchNorm(width)
        self.contract = nn.Linear(width, width)
        self.activation = activation_function(activation)

    def forward(self, x: Tensor, lengths: Tensor, chunks: Chunks | None = None) -> Tensor:
        """Map x (B, T, D), with lengths (B,), to (B, T, D)."""
        x = functional.glu(self.expand(x), dim=-1)  # (B, T, D)
        x = self.norm(self.depthwise(x, lengths, chunks), lengths)
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
