"""The non-linearities that a frontend's configuration can name."""

from typing import Literal

from torch import nn

Activation = Literal["relu", "prelu", "swish"]


def make_activation(name: Activation, channels: int) -> nn.Module:
    """Make the non-linearity called `name`; PReLU learns one slope a channel."""
    if name == "prelu":
        return nn.PReLU(channels)
    return {"relu": nn.ReLU, "swish": nn.SiLU}[name](inplace=True)
