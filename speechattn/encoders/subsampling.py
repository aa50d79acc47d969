"""Input layers: to the width of the encoder, and to fewer frames.

The arithmetic of ESPnet's `Conv2dSubsampling*`, `Conv1dSubsampling*` and of its
`input_layer: linear`.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechattn.dropout import Dropout

Subsampling = Literal[
    "none",
    "linear",
    "projection",
    "conv1d1",
    "conv1d2",
    "conv1d3",
    "conv2d1",
    "conv2d2",
    "conv2d4",
    "conv2d6",
    "conv2d8",
]

# (kernel, stride) of each convolution; in two dimensions the same along time and features.
_CONVOLUTIONS = {
    "conv1d1": ((3, 1), (3, 1)),
    "conv1d2": ((3, 1), (3, 2)),
    "conv1d3": ((3, 1), (5, 3)),
    "conv2d1": ((3, 1), (3, 1)),
    "conv2d2": ((3, 2), (3, 1)),
    "conv2d4": ((3, 2), (3, 2)),
    "conv2d6": ((3, 2), (5, 3)),
    "conv2d8": ((3, 2), (3, 2), (3, 2)),
}


class InputLayer(nn.Module):
    """Features (B, T, F) to (B, T', D); hidden frame i reads `shortest` frames from i * factor on.

    Attributes:
        factor: input frames from one hidden frame to the next.
        shortest: input frames that give one hidden frame.
    """

    factor = 1
    shortest = 1

    def __init__(self, input_size: int, output_size: int):
        super().__init__()
        self.input_size, self.output_size = input_size, output_size

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, T, F) and lengths (B,) to (B, T', D) and (B,)."""
        raise NotImplementedError

    def init_state(self, batch: int) -> Tensor:
        """Return the state of B streams that begin: no frames, (B, 0, F)."""
        device = next((p.device for p in self.parameters()), None)
        return torch.zeros(batch, 0, self.input_size, device=device)

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the hidden frames that more input completes.

        Args:
            x: (B, c, F), any number of frames.
            past: (B, p, F), earlier frames that coming hidden frames read.

        Returns:
            (B, n, D), n may be 0, and the new `past`.
        """
        x = torch.cat((past.to(x), x), dim=1)
        frames = max((x.shape[1] - self.shortest) // self.factor + 1, 0)
        if frames == 0:
            return x.new_zeros(x.shape[0], 0, self.output_size), x
        used = (frames - 1) * self.factor + self.shortest
        y, _ = self(x[:, :used], torch.full((x.shape[0],), used, device=x.device))
        return y, x[:, frames * self.factor :]


class Identity(InputLayer):
    """`none`: features that already have the encoder's width and rate."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return x, lengths


class LinearInput(InputLayer):
    """`linear` and `projection`, for features that already have the encoder's rate.

    Args:
        input_size: F.
        output_size: D.
        dropout: after the norm.
        norm: LayerNorm and dropout follow, as in ESPnet; auto_avsr has the Linear alone.
    """

    def __init__(self, input_size: int, output_size: int, dropout: float = 0.1, norm: bool = True):
        super().__init__(input_size, output_size)
        self.projection = nn.Linear(input_size, output_size)
        self.norm = nn.LayerNorm(output_size) if norm else None  # torch's eps, as in ESPnet
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = self.projection(x)  # (B, T, D)
        return (x if self.norm is None else self.dropout(self.norm(x))), lengths


class ConvSubsampling(InputLayer):
    """Unpadded convolutions with stride over time, and what both kinds of them share.

    As no convolution pads, an output frame within an item's new length reads frames within its old
    length only: nothing has to be zeroed for padding not to leak.

    Args:
        input_size: F.
        output_size: D, also the number of channels.
        kind: a name of `Subsampling` that begins with `conv`.
    """

    def __init__(self, input_size: int, output_size: int, kind: Subsampling):
        super().__init__(input_size, output_size)
        self.shape = _CONVOLUTIONS[kind]
        for kernel, stride in reversed(self.shape):
            self.factor *= stride
            self.shortest = (self.shortest - 1) * stride + kernel

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, T, F) and lengths (B,) to (B, T', D) and (B,).

        T' is at least 1; an item too short for one frame has length 0.
        """
        if x.shape[1] < self.shortest:
            x = functional.pad(x, (0, 0, 0, self.shortest - x.shape[1]))
        return self.projection(self._convolve(x)), self.output_lengths(lengths)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Return the hidden frames of items of so many input frames, (B,) to (B,)."""
        return self._reduce(lengths).clamp(min=0)

    def _convolve(self, x: Tensor) -> Tensor:
        """Map (B, T, F) to the projection's input."""
        raise NotImplementedError

    def _reduce(self, size: int | Tensor) -> int | Tensor:
        for kernel, stride in self.shape:
            size = (size - kernel) // stride + 1
        return size


class Conv2dSubsampling(ConvSubsampling):
    """`conv2d1` to `conv2d8`: convolutions over time and features.

    F is at least 5 (1x), 7 (2x, 4x), 11 (6x) or 15 (8x).
    """

    def __init__(self, input_size: int, output_size: int, kind: Subsampling = "conv2d4"):
        super().__init__(input_size, output_size, kind)
        features = self._reduce(input_size)
        if features < 1:
            raise ValueError(f"{kind} needs at least {self.shortest} features, not {input_size}")
        self.convolutions = nn.ModuleList(
            nn.Conv2d(output_size if i else 1, output_size, kernel, stride)
            for i, (kernel, stride) in enumerate(self.shape)
        )
        self.projection = nn.Linear(output_size * features, output_size)

    def _convolve(self, x: Tensor) -> Tensor:
        x = x[:, None]  # (B, 1, T, F)
        for convolution in self.convolutions:
            x = functional.relu(convolution(x), inplace=True)
        return x.transpose(1, 2).flatten(2)  # (B, T', D F')


class Conv1dSubsampling(ConvSubsampling):
    """`conv1d1` to `conv1d3`: convolutions over time, features are channels."""

    def __init__(self, input_size: int, output_size: int, kind: Subsampling = "conv1d2"):
        super().__init__(input_size, output_size, kind)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(output_size if i else input_size, output_size, kernel, stride)
            for i, (kernel, stride) in enumerate(self.shape)
        )
        self.projection = nn.Linear(output_size, output_size)

    def _convolve(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)  # (B, F, T)
        for convolution in self.convolutions:
            x = functional.relu(convolution(x), inplace=True)
        return x.transpose(1, 2)  # (B, T', D)


def build_subsampling(
    kind: Subsampling, input_size: int, output_size: int, dropout: float
) -> InputLayer:
    """Make the input layer of this name."""
    if kind == "none":
        if input_size != output_size:
            raise ValueError(
                f"subsampling 'none' passes {input_size} features on as they are, but the encoder "
                f"is {output_size} wide: use 'linear'"
            )
        return Identity(input_size, output_size)
    if kind in ("linear", "projection"):
        return LinearInput(input_size, output_size, dropout, norm=kind == "linear")
    if kind not in _CONVOLUTIONS:
        names = ", ".join(("none", "linear", "projection", *_CONVOLUTIONS))
        raise ValueError(f"unknown subsampling {kind!r}: choose one of {names}")
    convolution = Conv1dSubsampling if kind.startswith("conv1d") else Conv2dSubsampling
    return convolution(input_size, output_size, kind)
