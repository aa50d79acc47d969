"""Input layers: to the width of the encoder, and to fewer frames.

The arithmetic of ESPnet's `Conv2dSubsampling*` and of its `input_layer: linear`.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from speechattn.dropout import Dropout

Subsampling = Literal["none", "linear", "conv2d2", "conv2d4", "conv2d6", "conv2d8"]

# (kernel, stride) of each convolution, the same along time and features.
_CONVOLUTIONS = {
    "conv2d2": ((3, 2), (3, 1)),
    "conv2d4": ((3, 2), (3, 2)),
    "conv2d6": ((3, 2), (5, 3)),
    "conv2d8": ((3, 2), (3, 2), (3, 2)),
}


class Identity(nn.Module):
    """`none`: features that already have the encoder's width and rate."""

    factor = 1

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return x, lengths


class LinearInput(nn.Module):
    """`linear`: Linear, LayerNorm, dropout, for features that already have the encoder's rate.

    Args:
        input_size: F.
        output_size: D.
        dropout: after the norm.
    """

    factor = 1

    def __init__(self, input_size: int, output_size: int, dropout: float = 0.1):
        super().__init__()
        self.projection = nn.Linear(input_size, output_size)
        self.norm = nn.LayerNorm(output_size)  # torch's eps here, as in ESPnet
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.dropout(self.norm(self.projection(x))), lengths  # (B, T, D)


class Conv2dSubsampling(nn.Module):
    """`conv2d2` to `conv2d8`: unpadded convolutions with stride over time and features.

    As no convolution pads, an output frame within an item's new length reads frames within its old
    length only: nothing has to be zeroed for padding not to leak.

    Args:
        input_size: F, at least 7 (2x, 4x), 11 (6x) or 15 (8x).
        output_size: D, also the number of channels.
        kind: `conv2d2`, `conv2d4`, `conv2d6` or `conv2d8`.
    """

    def __init__(self, input_size: int, output_size: int, kind: Subsampling = "conv2d4"):
        super().__init__()
        self.shape = _CONVOLUTIONS[kind]
        self.factor = 1
        self.shortest = 1  # input frames that give one output frame
        for kernel, stride in reversed(self.shape):
            self.factor *= stride
            self.shortest = (self.shortest - 1) * stride + kernel
        features = self._reduce(input_size)
        if features < 1:
            raise ValueError(f"{kind} needs at least {self.shortest} features, not {input_size}")
        self.convolutions = nn.ModuleList(
            nn.Conv2d(output_size if i else 1, output_size, kernel, stride)
            for i, (kernel, stride) in enumerate(self.shape)
        )
        self.projection = nn.Linear(output_size * features, output_size)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Subsample.

        Args:
            x: (B, T, F).
            lengths: (B,).

        Returns:
            (B, T', D) and (B,); T' is at least 1, an item too short for one frame has length 0.
        """
        if x.shape[1] < self.shortest:
            x = functional.pad(x, (0, 0, 0, self.shortest - x.shape[1]))
        x = x[:, None]  # (B, 1, T, F)
        for convolution in self.convolutions:
            x = functional.relu(convolution(x), inplace=True)
        x = self.projection(x.transpose(1, 2).flatten(2))  # (B, T', D)
        return x, self.output_lengths(lengths)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Hidden frames of items of so many input frames; (B,) to (B,)."""
        return self._reduce(lengths).clamp(min=0)

    def _reduce(self, size: int | Tensor) -> int | Tensor:
        for kernel, stride in self.shape:
            size = (size - kernel) // stride + 1
        return size


def build_subsampling(
    kind: Subsampling, input_size: int, output_size: int, dropout: float
) -> Identity | LinearInput | Conv2dSubsampling:
    """The input layer of this name; each has `factor` and `forward(x, lengths)`."""
    if kind == "none":
        if input_size != output_size:
            raise ValueError(
                f"subsampling 'none' passes {input_size} features on as they are, but the encoder "
                f"is {output_size} wide: use 'linear'"
            )
        return Identity()
    if kind == "linear":
        return LinearInput(input_size, output_size, dropout)
    if kind in _CONVOLUTIONS:
        return Conv2dSubsampling(input_size, output_size, kind)
    names = ", ".join(("none", "linear", *_CONVOLUTIONS))
    raise ValueError(f"unknown subsampling {kind!r}: choose one of {names}")
