"""E-Branchformer encoder (Kim et al., 2210.00077), numerically ESPnet's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechattn.attention import AttentionFactory, RelativeSelfAttention
from speechattn.dropout import Dropout
from speechattn.encoders.activation import Activation, GateActivation
from speechattn.encoders.base import (
    LAYER_NORM_EPS,
    Block,
    StackedEncoder,
    attention_per_layer,
    per_layer,
)
from speechattn.encoders.cgmlp import ConvolutionalGatingMLP
from speechattn.encoders.depthwise import DepthwiseConv
from speechattn.encoders.feed_forward import FeedForward
from speechattn.encoders.streaming import Reader
from speechattn.encoders.subsampling import Subsampling


class EBranchformerBlock(Block):
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
        activation: of the feed-forward modules.
        gate_linear: a Linear after the gate's convolution.
        gate_activation: of the gate.
        attention: makes the mechanism.
        causal: convolutions read nothing to the right of a frame.
        stochastic_depth: see `Block`.
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
        activation: Activation = "swish",
        gate_linear: bool = False,
        gate_activation: GateActivation = "identity",
        attention: AttentionFactory = RelativeSelfAttention,
        causal: bool = False,
        stochastic_depth: float = 0.0,
    ):
        super().__init__(stochastic_depth)
        self.macaron = self.feed_forward = None
        self.ff_scale = 0.5 if macaron else 1.0
        if units and macaron:
            self.macaron_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.macaron = FeedForward(width, units, dropout, activation)
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = attention(width, heads, attention_dropout)
        self.cgmlp_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.cgmlp = ConvolutionalGatingMLP(
            width, cgmlp_units, cgmlp_kernel, dropout, gate_linear, gate_activation, causal
        )
        self.merge_depthwise = DepthwiseConv(2 * width, merge_kernel, causal)
        self.merge = nn.Linear(2 * width, width)
        if units:
            self.feed_forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.feed_forward = FeedForward(width, units, dropout, activation)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def readers(self) -> Sequence[nn.Module]:
        return self.attention, self.cgmlp, self.merge_depthwise

    def run(self, x: Tensor, reader: Reader, scale: float) -> Tensor:
        half = scale * self.ff_scale
        if self.macaron is not None:
            x = torch.add(x, self.dropout(self.macaron(self.macaron_norm(x))), alpha=half)
        broad = self.dropout(reader.attend(self.attention, self.attention_norm(x)))
        local = self.dropout(reader.convolve(self.cgmlp, self.cgmlp_norm(x)))
        both = torch.cat((broad, local), dim=-1)  # (B, T, 2D)
        both = both + reader.convolve(self.merge_depthwise, both)
        x = torch.add(x, self.dropout(self.merge(both)), alpha=scale)
        if self.feed_forward is not None:
            y = self.feed_forward(self.feed_forward_norm(x))
            x = torch.add(x, self.dropout(y), alpha=half)
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
        subsampling: `none` (F = D), `linear` and `projection` keep the frame rate, `conv2d1` to
            `conv2d8` divide it by 1 to 8, `conv1d1` to `conv1d3` by 1 to 3.
        dropout: of the input and every module's output.
        attention_dropout: of the attention weights.
        cgmlp_kernel: K of the gates' depthwise convolutions in frames, odd.
        merge_kernel: K of the merges' depthwise convolutions in frames, odd.
        macaron: two half-step feed-forward modules a block instead of one.
        layer_drop: chance of a block to be skipped by a training step.
        position_dropout: of the scaled input and the sinusoids; as `dropout` where None.
        activation: of the feed-forward modules.
        gate_linear: a Linear after the gates' convolution, ESPnet's `use_linear_after_conv`.
        gate_activation: of the gates.
        stochastic_depth: chance of each block to be skipped by a training step, with scaling; one
            for all blocks, or a list.
        attention: the mechanism, any of `speechattn.attention`, for all blocks or a list of one a
            block; `RelativeSelfAttention`, as ESPnet's `latest`, where None.
        intermediate: layers, from 1, whose frames `encode` returns too.
        self_conditioning: V, where these layers condition the next on the CTC head; 0 for none.
        causal: convolutions read nothing to the right of a frame.
        chunk_size: hidden frames a chunk; 0 for whole sequences.
        left_context: hidden frames before its chunk that a frame attends to; -1 for all.
        dynamic_chunk: training draws a chunk size a batch. See `StackedEncoder` for these last.
    """

    norm_intermediate = False

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
        position_dropout: float | None = None,
        activation: Activation = "swish",
        gate_linear: bool = False,
        gate_activation: GateActivation = "identity",
        stochastic_depth: float | list[float] = 0.0,
        attention: AttentionFactory | list[AttentionFactory] | None = None,
        intermediate: Sequence[int] = (),
        self_conditioning: int = 0,
        causal: bool = False,
        chunk_size: int = 0,
        left_context: int = -1,
        dynamic_chunk: bool = False,
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
                activation,
                gate_linear,
                gate_activation,
                mechanism,
                causal,
                depth,
            )
            for depth, mechanism in zip(
                per_layer(stochastic_depth, num_blocks, "stochastic_depth"),
                attention_per_layer(attention, num_blocks),
                strict=True,
            )
        ]
        super().__init__(
            input_size,
            output_size,
            blocks,
            subsampling,
            dropout,
            layer_drop,
            position_dropout,
            intermediate,
            self_conditioning,
            chunk_size,
            left_context,
            dynamic_chunk,
        )
