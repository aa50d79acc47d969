"""Position-wise feed-forward module."""

from torch import Tensor, nn
from torch.nn import functional

from speechattn.dropout import Dropout


class FeedForward(nn.Module):
    """Linear, Swish, dropout, Linear (Conformer, 2005.08100, section 2.3).

    Args:
        width: D.
        units: width of the inner layer.
        dropout: of the inner layer.
    """

    def __init__(self, width: int, units: int, dropout: float = 0.1):
        super().__init__()
        self.expand = nn.Linear(width, units)
        self.contract = nn.Linear(units, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.dropout(functional.silu(self.expand(x))))  # (B, T, D)
