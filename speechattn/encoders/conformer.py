"""Conformer encoder (Gulati et al., 2005.08100), numerically ESPnet's."""

from torch import Tensor, nn

from speechattn.attention.relative import RelativeSelfAttention
from speechattn.dropout import Dropout
from speechattn.encoders.base import LAYER_NORM_EPS, StackedEncoder
from speechattn.encoders.convolution import ConvolutionModule
from speechattn.encoders.feed_forward import FeedForward
from speechattn.encoders.subsampling import Subsampling


class ConformerBlock(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm; each a residual.

    Args:
        width: D.
        heads: H.
        units: inner width of the feed-forward modules.
        kernel: K, odd.
        macaron: two half-step feed-forward modules; one whole at the end where False.
        dropout: of every module's output and inside the feed-forward.
        attention_dropout: of the attention weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        units: int,
        kernel: int,
        macaron: bool = True,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        self.ff_scale = 0.5 if macaron else 1.0
        if macaron:
            self.macaron_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.macaron = FeedForward(width, units, dropout)
        else:
            self.macaron = None
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = RelativeSelfAttention(width, heads, attention_dropout)
        self.convolution_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.convolution = ConvolutionModule(width, kernel)
        self.feed_forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(width, units, dropout)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor, positions: Tensor) -> Tensor:
        """x: (B, T, D), lengths: (B,), positions: (2T-1, D) to (B, T, D)."""
        if self.macaron is not None:
            x = x + self.ff_scale * self.dropout(self.macaron(self.macaron_norm(x)))
        x = x + self.dropout(self.attention(self.attention_norm(x), lengths, positions))
        x = x + self.dropout(self.convolution(self.convolution_norm(x), lengths))
        x = x + self.ff_scale * self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return self.norm(x)


class ConformerEncoder(StackedEncoder):
    """Conformer: ESPnet's `ConformerEncoder` with `rel_pos_type: latest`, `normalize_before`.

    Args:
        input_size: F, features a frame.
        output_size: D, width of every layer.
        attention_heads: H, divides D.
        linear_units: inner width of the feed-forward modules.
        num_blocks: layers.
        subsampling: `none` (F = D) and `linear` keep the frame rate, `conv2d2` to `conv2d8` divide
            it by 2 to 8.
        dropout: of the input, the positions and every module's output.
        attention_dropout: of the attention weights.
        conv_kernel: K of the depthwise convolutions in frames, odd.
        macaron: two half-step feed-forward modules a block instead of one.
        layer_drop: chance of a block to be skipped by a training step.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int = 256,
        attention_heads: int = 4,
        linear_units: int = 1024,
        num_blocks: int = 12,
        subsampling: Subsampling = "conv2d4",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        conv_kernel: int = 31,
        macaron: bool = True,
        layer_drop: float = 0.0,
    ):
        blocks = [
            ConformerBlock(
                output_size,
                attention_heads,
                linear_units,
                conv_kernel,
                macaron,
                dropout,
                attention_dropout,
            )
            for _ in range(num_blocks)
        ]
        super().__init__(input_size, output_size, blocks, subsampling, dropout, layer_drop)
