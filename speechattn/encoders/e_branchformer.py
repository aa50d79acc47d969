"""E-Branchformer encoder (Kim et al., 2210.00077), numerically ESPnet's."""

import torch
from torch import Tensor, nn

from speechattn.attention.relative import RelativeSelfAttention
from speechattn.dropout import Dropout
from speechattn.encoders.base import LAYER_NORM_EPS, StackedEncoder
from speechattn.encoders.cgmlp import ConvolutionalGatingMLP
from speechattn.encoders.depthwise import DepthwiseConv
from speechattn.encoders.feed_forward import FeedForward
from speechattn.encoders.subsampling import Subsampling


class EBranchformerBlock(nn.Module):
    """Attention and gating MLP side by side, merged by a convolution, between two feed-forwards.

    Args:
        width: D.
        heads: H.
        units: inner width of the feed-forward modules; 0 for none.
        cgmlp_units: inner width of the gating MLP, even.
        cgmlp_kernel: K of the gate, odd.
        merge_kernel: K of the merge, odd.
        macaron: two half-step feed-forward modules; one whole at the end where False.
        dropout: of every module's output and inside the feed-forward and the gate.
        attention_dropout: of the attention weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        units: int,
        cgmlp_units: int,
        cgmlp_kernel: int,
        merge_kernel: int,
        macaron: bool = True,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        self.macaron = self.feed_forward = None
        self.ff_scale = 0.5 if macaron else 1.0
        if units and macaron:
            self.macaron_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.macaron = FeedForward(width, units, dropout)
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = RelativeSelfAttention(width, heads, attention_dropout)
        self.cgmlp_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.cgmlp = ConvolutionalGatingMLP(width, cgmlp_units, cgmlp_kernel, dropout)
        self.merge_depthwise = DepthwiseConv(2 * width, merge_kernel)
        self.merge = nn.Linear(2 * width, width)
        if units:
            self.feed_forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.feed_forward = FeedForward(width, units, dropout)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor, positions: Tensor) -> Tensor:
        """x: (B, T, D), lengths: (B,), positions: (2T-1, D) to (B, T, D)."""
        if self.macaron is not None:
            x = x + self.ff_scale * self.dropout(self.macaron(self.macaron_norm(x)))
        broad = self.dropout(self.attention(self.attention_norm(x), lengths, positions))
        local = self.dropout(self.cgmlp(self.cgmlp_norm(x), lengths))
        both = torch.cat((broad, local), dim=-1)  # (B, T, 2D)
        x = x + self.dropout(self.merge(both + self.merge_depthwise(both, lengths)))
        if self.feed_forward is not None:
            x = x + self.ff_scale * self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return self.norm(x)


class EBranchformerEncoder(StackedEncoder):
    """E-Branchformer: ESPnet's `EBranchformerEncoder` with `rel_pos_type: latest`, `use_ffn`.

    Args:
        input_size: F, features a frame.
        output_size: D, width of every layer.
        attention_heads: H, divides D.
        linear_units: inner width of the feed-forward modules; 0 for none.
        cgmlp_units: inner width of the gating MLPs, even.
        num_blocks: layers.
        subsampling: `none` (F = D) and `linear` keep the frame rate, `conv2d2` to `conv2d8` divide
            it by 2 to 8.
        dropout: of the input, the positions and every module's output.
        attention_dropout: of the attention weights.
        cgmlp_kernel: K of the gates' depthwise convolutions in frames, odd.
        merge_kernel: K of the merges' depthwise convolutions in frames, odd.
        macaron: two half-step feed-forward modules a block instead of one.
        layer_drop: chance of a block to be skipped by a training step.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int = 256,
        attention_heads: int = 4,
        linear_units: int = 1024,
        cgmlp_units: int = 1024,
        num_blocks: int = 12,
        subsampling: Subsampling = "conv2d4",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        cgmlp_kernel: int = 31,
        merge_kernel: int = 31,
        macaron: bool = True,
        layer_drop: float = 0.0,
    ):
        blocks = [
            EBranchformerBlock(
                output_size,
                attention_heads,
                linear_units,
                cgmlp_units,
                cgmlp_kernel,
                merge_kernel,
                macaron,
                dropout,
                attention_dropout,
            )
            for _ in range(num_blocks)
        ]
        super().__init__(input_size, output_size, blocks, subsampling, dropout, layer_drop)
