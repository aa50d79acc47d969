"""Conformer encoder (Gulati et al., 2005.08100), numerically ESPnet's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechattn.attention import SelfAttention
from speechattn.dropout import Dropout
from speechattn.encoders.activation import Activation
from speechattn.encoders.convolution import ConvolutionModule
from speechattn.encoders.feed_forward import FeedForward
from speechattn.encoders.stacked import LAYER_NORM_EPS, Block, StackedEncoder
from speechattn.encoders.streaming import Context


class ConformerBlock(Block):
    """Half feed-forward, attention, convolution, half feed-forward, norm; each a residual.

    Args:
        width: D.
        units: inner width of the feed-forward modules.
        kernel: K, odd.
        attention: makes the mechanism, of width D.
        dropout: of every module's output and inside the feed-forward.
        stochastic_depth: see `Block`; for the others see `ConformerEncoder`.
    """

    def __init__(
        self,
        width: int,
        units: int,
        kernel: int,
        attention: Callable[[], SelfAttention],
        *,
        macaron: bool = True,
        dropout: float = 0.1,
        activation: Activation = "swish",
        causal: bool = False,
        stochastic_depth: float = 0.0,
    ):
        super().__init__(stochastic_depth)
        self.ff_scale = 0.5 if macaron else 1.0
        self.macaron = None
        if macaron:
            self.macaron_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.macaron = FeedForward(width, units, dropout, activation)
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = attention()
        self.convolution_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.convolution = ConvolutionModule(width, kernel, activation, causal=causal)
        self.feed_forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(width, units, dropout, activation)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def stateful_modules(self) -> Sequence[nn.Module]:
        return self.attention, self.convolution

    def run(self, x: Tensor, context: Context, scale: float) -> Tensor:
        half = scale * self.ff_scale
        if self.macaron is not None:
            x = torch.add(x, self.dropout(self.macaron(self.macaron_norm(x))), alpha=half)
        y = context.attend(self.attention, self.attention_norm(x))
        x = torch.add(x, self.dropout(y), alpha=scale)
        y = context.convolve(self.convolution, self.convolution_norm(x))
        x = torch.add(x, self.dropout(y), alpha=scale)
        y = self.feed_forward(self.feed_forward_norm(x))
        return self.norm(torch.add(x, self.dropout(y), alpha=half))


@dataclass(eq=False, repr=False, kw_only=True)
class ConformerEncoder(StackedEncoder):
    """Conformer: ESPnet's `ConformerEncoder` with `rel_pos_type: latest`, `normalize_before`.

    Args:
        linear_units: inner width of the feed-forward modules.
        conv_kernel: K of the depthwise convolutions in frames, odd.
        macaron: two half-step feed-forward modules a block instead of a whole one at its end.
        activation: of the feed-forward and convolution modules.
    """

    linear_units: int = 1024
    conv_kernel: int = 31
    macaron: bool = True
    activation: Activation = "swish"

    def make_block(
        self, layer: int, attention: Callable[[], SelfAttention], stochastic_depth: float
    ) -> ConformerBlock:
        return ConformerBlock(
            self.output_size,
            self.linear_units,
            self.conv_kernel,
            attention,
            macaron=self.macaron,
            dropout=self.dropout,
            activation=self.activation,
            causal=self.causal,
            stochastic_depth=stochastic_depth,
        )
