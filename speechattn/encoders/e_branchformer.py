"""E-Branchformer encoder (Kim et al., 2210.00077), numerically ESPnet's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechattn.attention import SelfAttention
from speechattn.dropout import Dropout
from speechattn.encoders.activation import Activation, GateActivation
from speechattn.encoders.cgmlp import ConvolutionalGatingMLP
from speechattn.encoders.depthwise import DepthwiseConv
from speechattn.encoders.feed_forward import FeedForward
from speechattn.encoders.stacked import LAYER_NORM_EPS, Block, StackedEncoder
from speechattn.encoders.streaming import Context


class EBranchformerBlock(Block):
    """Attention and gating MLP side by side, merged by a convolution, between two feed-forwards.

    Args:
        width: D.
        attention: makes the mechanism, of width D.
        units: inner width of the feed-forward modules; 0 for none.
        dropout: of every module's output and inside the feed-forward and the gate.
        stochastic_depth: see `Block`; for the others see `EBranchformerEncoder`.
    """

    def __init__(
        self,
        width: int,
        attention: Callable[[], SelfAttention],
        *,
        units: int,
        cgmlp_units: int,
        cgmlp_kernel: int,
        merge_kernel: int,
        macaron: bool = True,
        dropout: float = 0.1,
        activation: Activation = "swish",
        gate_linear: bool = False,
        gate_activation: GateActivation = "identity",
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
        self.attention = attention()
        self.cgmlp_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.cgmlp = ConvolutionalGatingMLP(
            width,
            cgmlp_units,
            cgmlp_kernel,
            dropout,
            linear=gate_linear,
            gate_activation=gate_activation,
            causal=causal,
        )
        self.merge_depthwise = DepthwiseConv(2 * width, merge_kernel, causal)
        self.merge = nn.Linear(2 * width, width)
        if units:
            self.feed_forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.feed_forward = FeedForward(width, units, dropout, activation)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def stateful_modules(self) -> Sequence[nn.Module]:
        return self.attention, self.cgmlp, self.merge_depthwise

    def run(self, x: Tensor, context: Context, scale: float) -> Tensor:
        half = scale * self.ff_scale
        if self.macaron is not None:
            x = torch.add(x, self.dropout(self.macaron(self.macaron_norm(x))), alpha=half)
        broad = self.dropout(context.attend(self.attention, self.attention_norm(x)))
        local = self.dropout(context.convolve(self.cgmlp, self.cgmlp_norm(x)))
        both = torch.cat((broad, local), dim=-1)  # (B, T, 2D)
        both = both + context.convolve(self.merge_depthwise, both)
        x = torch.add(x, self.dropout(self.merge(both)), alpha=scale)
        if self.feed_forward is not None:
            y = self.feed_forward(self.feed_forward_norm(x))
            x = torch.add(x, self.dropout(y), alpha=half)
        return self.norm(x)


@dataclass(eq=False, repr=False, kw_only=True)
class EBranchformerEncoder(StackedEncoder):
    """E-Branchformer: ESPnet's `EBranchformerEncoder` with `rel_pos_type: latest`, `use_ffn`.

    Args:
        linear_units: inner width of the feed-forward modules; 0 for none.
        cgmlp_units: inner width of the gating MLPs, even.
        cgmlp_kernel: K of the gates' depthwise convolutions in frames, odd.
        merge_kernel: K of the merges' depthwise convolutions in frames, odd.
        macaron: two half-step feed-forward modules a block instead of a whole one at its end.
        activation: of the feed-forward modules.
        gate_linear: a Linear after the gates' convolution, ESPnet's `use_linear_after_conv`.
        gate_activation: of the gates.
    """

    linear_units: int = 1024
    cgmlp_units: int = 1024
    cgmlp_kernel: int = 31
    merge_kernel: int = 31
    macaron: bool = True
    activation: Activation = "swish"
    gate_linear: bool = False
    gate_activation: GateActivation = "identity"

    norm_intermediate = False

    def make_block(
        self, layer: int, attention: Callable[[], SelfAttention], stochastic_depth: float
    ) -> EBranchformerBlock:
        return EBranchformerBlock(
            self.output_size,
            attention,
            units=self.linear_units,
            cgmlp_units=self.cgmlp_units,
            cgmlp_kernel=self.cgmlp_kernel,
            merge_kernel=self.merge_kernel,
            macaron=self.macaron,
            dropout=self.dropout,
            activation=self.activation,
            gate_linear=self.gate_linear,
            gate_activation=self.gate_activation,
            causal=self.causal,
            stochastic_depth=stochastic_depth,
        )
