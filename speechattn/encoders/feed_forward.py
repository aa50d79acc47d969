"""Position-wise feed-forward module."""

from torch import Tensor, nn

from speechattn.dropout import Dropout
from speechattn.encoders.activation import Activation, activation_function


class FeedForward(nn.Module):
    """Linear, activation, dropout, Linear (Conformer, 2005.08100, section 2.3).

    Args:
        width: D.
        units: width of the inner layer.
        dropout: of the inner layer.
        activation: of the inner layer; the Conformer's is Swish.
    """

    def __init__(
        self, width: int, units: int, dropout: float = 0.1, activation: Activation = "swish"
    ):
        super().__init__()
        self.expand = nn.Linear(width, units)
        self.contract = nn.Linear(units, width)
        self.dropout = Dropout(dropout)
        self.activation = activation_function(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.dropout(self.activation(self.expand(x))))  # (B, T, D)
