"""Convolution module of the Conformer (2005.08100, section 2.2)."""

from torch import Tensor, nn
from torch.nn import functional

from speechattn.encoders.batch_norm import MaskedBatchNorm
from speechattn.encoders.depthwise import DepthwiseConv


class ConvolutionModule(nn.Module):
    """Pointwise with GLU, depthwise, batch norm, Swish, pointwise.

    Args:
        width: D.
        kernel: K of the depthwise convolution, odd.
    """

    def __init__(self, width: int, kernel: int = 31):
        super().__init__()
        self.expand = nn.Linear(width, 2 * width)  # a pointwise convolution, batch and time first
        self.depthwise = DepthwiseConv(width, kernel)
        self.norm = MaskedBatchNorm(width)
        self.contract = nn.Linear(width, width)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (B, T, D), lengths: (B,) to (B, T, D)."""
        x = functional.glu(self.expand(x), dim=-1)  # (B, T, D)
        x = self.norm(self.depthwise(x, lengths), lengths)
        return self.contract(functional.silu(x))
