"""What every encoder is, and the stack of blocks that most of them are."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechattn.attention.positions import RelativePositions
from speechattn.encoders.subsampling import Subsampling, build_subsampling
from speechattn.masks import padding_mask

# ESPnet's LayerNorm; its checkpoints are imported, so every block here uses the same.
LAYER_NORM_EPS = 1e-12


class Encoder(nn.Module):
    """Turns features into hidden states.

    `forward(x (B, T, F), lengths (B,)) -> (hidden (B, T', output_size), lengths (B,))`. Frames
    beyond an item's length are zero, and what an item gives does not depend on the batch it came
    in.

    Attributes:
        input_size: F.
        output_size: D.
        subsampling: one hidden frame stands for this many input frames.
    """

    input_size: int
    output_size: int
    subsampling: int

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class StackedEncoder(Encoder):
    """Input layer, relative positions, equal blocks, final norm.

    Args:
        input_size: F.
        output_size: D, even.
        blocks: each `forward(x (B, T, D), lengths (B,), positions (2T-1, D)) -> (B, T, D)`.
        subsampling: the input layer, see `speechattn.encoders.subsampling`.
        dropout: of the input and of the positions.
        layer_drop: chance of a block to be skipped by a training step (1603.09382, without
            scaling, as ESPnet's `layer_drop_rate`).
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        blocks: Sequence[nn.Module],
        subsampling: Subsampling,
        dropout: float,
        layer_drop: float,
    ):
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.layer_drop = layer_drop
        self.input = build_subsampling(subsampling, input_size, output_size, dropout)
        self.subsampling = self.input.factor
        self.positions = RelativePositions(output_size, dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(output_size, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            x: (B, T, F); whatever stands beyond an item's length is ignored, NaN included.
            lengths: (B,) int64, at most T.

        Returns:
            hidden: (B, T', D), zero beyond an item's length.
            lengths: (B,) int64, at most T'; 0 for an item too short for the subsampling.
        """
        x = x.masked_fill(~padding_mask(lengths, x.shape[1])[..., None], 0.0)
        x, lengths = self.input(x, lengths)
        x, positions = self.positions(x)
        for block in self.blocks:
            if self.training and self.layer_drop > 0 and torch.rand(()).item() < self.layer_drop:
                continue
            x = block(x, lengths, positions)
        x = self.norm(x)
        return x.masked_fill(~padding_mask(lengths, x.shape[1])[..., None], 0.0), lengths
