"""Convolutional gating MLP of the Branchformer (2207.02971; gMLP, 2105.08050)."""

from torch import Tensor, nn
from torch.nn import functional

from speechattn.dropout import Dropout
from speechattn.encoders.base import LAYER_NORM_EPS
from speechattn.encoders.depthwise import DepthwiseConv


class ConvolutionalGatingMLP(nn.Module):
    """Linear, GELU, one half gates the other by its neighbourhood in time, dropout, Linear.

    Args:
        width: D.
        units: width of the inner layer, even.
        kernel: K of the gate's depthwise convolution, odd.
        dropout: of the gated half.
    """

    def __init__(self, width: int, units: int, kernel: int = 31, dropout: float = 0.1):
        super().__init__()
        if units % 2:
            raise ValueError(f"ConvolutionalGatingMLP: units must be even, not {units}")
        self.expand = nn.Linear(width, units)
        self.norm = nn.LayerNorm(units // 2, eps=LAYER_NORM_EPS)
        self.depthwise = DepthwiseConv(units // 2, kernel)
        self.contract = nn.Linear(units // 2, width)
        self.dropout = Dropout(dropout)
        # The gate starts open, which gMLP found needed for stable training.
        nn.init.normal_(self.depthwise.weight, std=1e-6)
        nn.init.ones_(self.depthwise.bias)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (B, T, D), lengths: (B,) to (B, T, D)."""
        content, gate = functional.gelu(self.expand(x)).chunk(2, dim=-1)
        gate = self.depthwise(self.norm(gate), lengths)  # (B, T, units/2)
        return self.contract(self.dropout(content * gate))
