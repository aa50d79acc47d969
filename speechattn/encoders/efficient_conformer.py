"""Efficient Conformer (Burchi and Vielzeuf, 2109.01163): fewer frames and more width by stages.

The numbers are those of the authors' code (github.com/burchim/EfficientConformer) on a single
utterance; it lets padding into batch statistics, convolutions and groups, and this one does not.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import prod
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from speechattn.attention.grouped import GroupedSelfAttention, grouped_positions
from speechattn.attention.strided import StridedSelfAttention
from speechattn.dropout import Dropout
from speechattn.encoders.base import Encoder, EncoderOutput, Head, clean_input
from speechattn.encoders.batch_norm import MaskedBatchNorm
from speechattn.encoders.convolution import ConvolutionModule, strided_lengths
from speechattn.encoders.feed_forward import FeedForward
from speechattn.masks import Chunks, without_padding

LAYER_NORM_EPS = 1e-6  # the authors'


class ConvolutionInput(nn.Module):
    """Convolutions of stride 2 over time and features, batch norm, Swish; then a projection.

    Args:
        input_size: F.
        output_size: D, also the number of channels.
        layers: convolutions; each halves the frames and the features, rounding up.
        dropout: of the projection.
    """

    def __init__(self, input_size: int, output_size: int, layers: int = 1, dropout: float = 0.1):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(output_size if i else 1, output_size, 3, stride=2, padding=1)
            for i in range(layers)
        )
        self.norms = nn.ModuleList(MaskedBatchNorm(output_size) for _ in range(layers))
        features = -(-input_size // 2**layers)
        self.projection = nn.Linear(output_size * features if layers else input_size, output_size)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map x (B, T, F) and lengths (B,) to (B, T', D) and (B,)."""
        x = x[..., None]  # (B, T, F, C)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = without_padding(x, lengths)
            x = convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, T', F', C)
            lengths = strided_lengths(lengths, 2)
            frames, features = x.shape[1:3]
            # The statistics of a channel are over its features too.
            x = norm(x.flatten(1, 2), lengths * features).unflatten(1, (frames, features))
            x = functional.silu(x)
        x = self.projection(x.transpose(2, 3).flatten(2))  # a channel's features side by side
        return self.dropout(x), lengths


class EfficientConformerBlock(nn.Module):
    """A Conformer block with grouped attention; the last of a stage changes rate and width.

    Args:
        width: D in.
        heads, ff_ratio, kernel: see `EfficientConformerEncoder`.
        group: g of the attention.
        output_size: D out; the width by default.
        conv_stride: of the convolution module.
        attention_stride: of the attention's queries; only without groups.
        dropout: of every module's output and inside the feed-forward.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        ff_ratio: int,
        kernel: int,
        *,
        group: int = 1,
        output_size: int | None = None,
        conv_stride: int = 1,
        attention_stride: int = 1,
        dropout: float = 0.1,
    ):
        super().__init__()
        output_size = width if output_size is None else output_size
        self.conv_stride, self.attention_stride = conv_stride, attention_stride
        self.macaron_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.macaron = FeedForward(width, ff_ratio * width, dropout)
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        if attention_stride > 1:
            self.attention = StridedSelfAttention(width, heads, stride=attention_stride)
        else:
            self.attention = GroupedSelfAttention(width, heads, group=group)
        self.convolution_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        sizes = {"output_size": output_size, "stride": conv_stride}
        self.convolution = ConvolutionModule(width, kernel, **sizes)
        self.shortcut = nn.Linear(width, output_size) if output_size != width else nn.Identity()
        self.feed_forward_norm = nn.LayerNorm(output_size, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(output_size, ff_ratio * output_size, dropout)
        self.norm = nn.LayerNorm(output_size, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Run half a feed-forward, attention, convolution, half a feed-forward and a norm.

        Maps x (B, T, D in), with lengths (B,) and the attention's positions of T frames, to (B, T',
        D out) and (B,), T' = ceil(T / stride).
        """
        x = x + 0.5 * self.dropout(self.macaron(self.macaron_norm(x)))
        y = self.dropout(self.attention(self.attention_norm(x), lengths, positions))
        x = x[:, :: self.attention_stride] + y
        lengths = strided_lengths(lengths, self.attention_stride)
        y = self.dropout(self.convolution(self.convolution_norm(x), lengths))
        x = self.shortcut(x[:, :: self.conv_stride]) + y
        lengths = strided_lengths(lengths, self.conv_stride)
        x = x + 0.5 * self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return self.norm(x), lengths


class EfficientConformerEncoder(Encoder):
    """Progressive downsampling: stages of Conformer blocks, each at a lower rate and wider.

    The defaults are the authors' `EfficientConformerCTCSmall.json`: 10 ms in, 20, 40 and 80 ms a
    frame in the stages. n frames become ceil(n / 2) at every step by 2.

    Args:
        input_size: F, features a frame.
        widths: D of each stage, even; the last is the output's.
        num_blocks: layers of each stage; the last one of a stage makes the step to the next.
        strides: frames that become one between each stage and the next.
        groups: g of each stage's attention.
        attention_heads: H, divides every width.
        ff_ratio: inner width of the feed-forward modules, in widths.
        conv_kernel: K of the depthwise convolutions in frames, odd.
        input_layers: convolutions of the input layer, each by 2; 0 for features that come at the
            first stage's rate already.
        downsampling: what a step strides: the `convolution` module, or the queries of the
            `attention`, which then has no groups in that stage.
        dropout: of the input, of every module's output and inside the feed-forward.
    """

    def __init__(
        self,
        input_size: int,
        widths: Sequence[int] = (120, 168, 240),
        num_blocks: Sequence[int] = (5, 5, 5),
        strides: Sequence[int] = (2, 2),
        *,
        groups: Sequence[int] = (3, 1, 1),
        attention_heads: int = 4,
        ff_ratio: int = 4,
        conv_kernel: int = 15,
        input_layers: int = 1,
        downsampling: Literal["convolution", "attention"] = "convolution",
        dropout: float = 0.1,
    ):
        super().__init__()
        if not len(widths) == len(num_blocks) == len(groups) == len(strides) + 1:
            raise ValueError(
                "EfficientConformerEncoder: one width, number of blocks and group size a stage, "
                f"and one stride less, not {len(widths)}, {len(num_blocks)}, {len(groups)} and "
                f"{len(strides)}"
            )
        if min(*num_blocks, *strides, *groups) < 1 or any(width % 2 for width in widths):
            raise ValueError(
                "EfficientConformerEncoder: widths are even, and blocks, strides and groups at "
                f"least 1, not {list(widths)}, {list(num_blocks)}, {list(strides)} and "
                f"{list(groups)}"
            )
        if downsampling == "attention" and any(
            s > 1 and g > 1 for s, g in zip(strides, groups, strict=False)
        ):
            raise ValueError(
                "EfficientConformerEncoder: strided attention has no groups; give every stage "
                f"before a stride group size 1, not {list(groups)}"
            )
        self.input_size = input_size
        self.output_size = widths[-1]
        self.subsampling_factor = 2**input_layers * prod(strides)
        self.groups = tuple(groups)
        self.input = ConvolutionInput(input_size, widths[0], input_layers, dropout)
        self.stages = nn.ModuleList()
        steps = [*zip(pairwise(widths), strides, strict=True), ((widths[-1], widths[-1]), 1)]
        for ((width, wider), stride), blocks, group in zip(steps, num_blocks, groups, strict=True):
            make_block = partial(
                EfficientConformerBlock,
                width,
                attention_heads,
                ff_ratio,
                conv_kernel,
                group=group,
                dropout=dropout,
            )
            stage = [make_block() for _ in range(blocks - 1)]
            step = "attention_stride" if downsampling == "attention" else "conv_stride"
            stage.append(make_block(output_size=wider, **{step: stride}))
            self.stages.append(nn.ModuleList(stage))

    def encode(
        self, x: Tensor, lengths: Tensor, head: Head | None = None, chunks: Chunks | None = None
    ) -> EncoderOutput:
        if chunks is not None:
            raise ValueError("EfficientConformerEncoder needs whole sequences, it has no chunks")
        x, lengths = self.input(clean_input(x, lengths), lengths)
        for stage, group in zip(self.stages, self.groups, strict=True):
            positions = grouped_positions(*x.shape[1:], group, x.device).to(x.dtype)
            for block in stage:
                x, lengths = block(x, lengths, positions)
        return EncoderOutput(without_padding(x, lengths), lengths, {})
