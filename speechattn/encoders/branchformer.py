"""Branchformer encoder (Peng et al., 2207.02971), numerically ESPnet's."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from speechattn.attention import AttentionFactory, RelativeSelfAttention
from speechattn.dropout import Dropout
from speechattn.encoders.activation import GateActivation
from speechattn.encoders.base import (
    LAYER_NORM_EPS,
    Block,
    StackedEncoder,
    attention_per_layer,
    per_layer,
)
from speechattn.encoders.cgmlp import ConvolutionalGatingMLP
from speechattn.encoders.streaming import Reader
from speechattn.encoders.subsampling import Subsampling
from speechattn.masks import Chunks, chunk_mask, padding_mask

MergeMethod = Literal["concat", "learned_ave", "fixed_ave"]


class LearnedAverage(nn.Module):
    """Weighs two branches by what an attention pooling over time finds in each (section 3.4.2).

    Where the sequence comes in chunks, the pooling of a chunk goes over the frames that the chunk
    sees, so that each chunk has weights of its own.

    Args:
        width: D.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.attention_score = nn.Linear(width, 1)
        self.cgmlp_score = nn.Linear(width, 1)
        self.attention_weight = nn.Linear(width, 1)
        self.cgmlp_weight = nn.Linear(width, 1)

    def forward(self, both: Tensor, lengths: Tensor, chunks: Chunks | None = None) -> Tensor:
        """The branches side by side (B, T, 2D), lengths (B,) to their average (B, T, D)."""
        frames = both.shape[1]
        seen = padding_mask(lengths, frames)[:, None]  # (B, 1, T)
        size = frames if chunks is None else min(chunks.size, frames)
        if chunks is not None:
            seen = seen & chunk_mask(frames, chunks, both.device)[::size]  # (B, n, T)
        weights = self._weights(self._pooled_values(both), seen)  # (B, n, 2)
        return self._average(both, weights.repeat_interleave(size, dim=1)[:, :frames])

    def init_state(self, batch: int) -> Tensor:
        """Streams that begin: no frame seen, (B, 0, 4)."""
        return self.cgmlp_score.weight.new_zeros(batch, 0, 4)

    def step(self, both: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """The next chunk (B, c, 2D) to (B, c, D), and a score and a value a branch and frame."""
        values = torch.cat((past, self._pooled_values(both)), dim=1)  # (B, L + c, 4)
        seen = torch.ones(1, 1, values.shape[1], dtype=torch.bool, device=values.device)
        return self._average(both, self._weights(values, seen)), values

    def _pooled_values(self, both: Tensor) -> Tensor:
        """Scores of both branches, then what each frame adds to their weights: (B, T, 4).

        The weight of a branch is linear in the pooled frame, so it is as well pooled itself: one
        number a frame instead of D.
        """
        broad, local = both.chunk(2, dim=-1)
        scores = (self.attention_score(broad), self.cgmlp_score(local))
        values = (self.attention_weight(broad), self.cgmlp_weight(local))
        return torch.cat((*(s / self.width**0.5 for s in scores), *values), dim=-1)

    def _weights(self, values: Tensor, seen: Tensor) -> Tensor:
        """values (B, T, 4), seen (B, n, T) to the weights of the branches (B, n, 2)."""
        scores, values = values.transpose(1, 2)[:, :, None].chunk(2, dim=1)  # (B, 2, 1, T)
        # The lowest number and not -inf: an item of no frames must not give NaN.
        scores = scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min)
        pooled = (scores.softmax(dim=-1) * values).sum(dim=-1)  # (B, 2, n)
        return pooled.softmax(dim=1).transpose(1, 2)

    @staticmethod
    def _average(both: Tensor, weights: Tensor) -> Tensor:
        broad, local = both.chunk(2, dim=-1)
        return weights[..., :1] * broad + weights[..., 1:] * local


class BranchformerBlock(Block):
    """Attention and gating MLP side by side, and what merges them.

    Args:
        width: D.
        heads: H.
        cgmlp_units: inner width of the gating MLP, even.
        cgmlp_kernel: K of the gate, odd.
        dropout: of every module's output and inside the gate.
        attention_dropout: of the attention weights.
        merge_method: `concat` and a Linear, `learned_ave`, or `fixed_ave` by `cgmlp_weight`.
        cgmlp_weight: of the gating MLP in the fixed average, 0 to 1; at the ends the other branch
            is left out.
        attention_drop: chance of the learned average to leave attention out of a training step.
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
        cgmlp_units: int,
        cgmlp_kernel: int,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        merge_method: MergeMethod = "concat",
        cgmlp_weight: float = 0.5,
        attention_drop: float = 0.0,
        gate_linear: bool = False,
        gate_activation: GateActivation = "identity",
        attention: AttentionFactory = RelativeSelfAttention,
        causal: bool = False,
        stochastic_depth: float = 0.0,
    ):
        super().__init__(stochastic_depth)
        if merge_method not in ("concat", "learned_ave", "fixed_ave"):
            raise ValueError(
                f"unknown merge_method {merge_method!r}: choose concat, learned_ave or fixed_ave"
            )
        if not 0 <= cgmlp_weight <= 1:
            raise ValueError(f"cgmlp_weight is from 0 to 1, not {cgmlp_weight}")
        if not 0 <= attention_drop <= 1:
            raise ValueError(f"attention_drop is from 0 to 1, not {attention_drop}")
        fixed = merge_method == "fixed_ave"
        self.cgmlp_weight = cgmlp_weight
        self.attention_drop = attention_drop
        self.attention = self.cgmlp = self.average = None
        if not (fixed and cgmlp_weight == 1):
            self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.attention = attention(width, heads, attention_dropout)
        if not (fixed and cgmlp_weight == 0):
            self.cgmlp_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.cgmlp = ConvolutionalGatingMLP(
                width, cgmlp_units, cgmlp_kernel, dropout, gate_linear, gate_activation, causal
            )
        if merge_method == "learned_ave":
            self.average = LearnedAverage(width)
        self.concat = merge_method == "concat"
        self.merge = nn.Linear(2 * width if self.concat else width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def readers(self) -> Sequence[nn.Module]:
        return [m for m in (self.attention, self.cgmlp, self.average) if m is not None]

    def run(self, x: Tensor, reader: Reader, scale: float) -> Tensor:
        branches = []
        if self.attention is not None and not self._drops_attention():
            y = reader.attend(self.attention, self.attention_norm(x))
            branches.append(self.dropout(y))
        if self.cgmlp is not None:
            y = reader.convolve(self.cgmlp, self.cgmlp_norm(x))
            branches.append(self.dropout(y))
        y = self.merge(self._merged(branches, reader))
        return self.norm(torch.add(x, self.dropout(y), alpha=scale))

    def _merged(self, branches: list[Tensor], reader: Reader) -> Tensor:
        """One or two (B, T, D) to (B, T, D), or to (B, T, 2D) where they are concatenated."""
        if len(branches) == 1:
            return branches[0]
        if self.concat:
            return torch.cat(branches, dim=-1)
        if self.average is not None:
            return reader.pool(self.average, torch.cat(branches, dim=-1))
        return torch.lerp(*branches, self.cgmlp_weight)

    def _drops_attention(self) -> bool:
        if self.average is None or not self.training or self.attention_drop == 0:
            return False
        return torch.rand(()).item() < self.attention_drop


class BranchformerEncoder(StackedEncoder):
    """Branchformer: ESPnet's `BranchformerEncoder` with `rel_pos_type: latest`.

    ESPnet's has no intermediate layers; here they go through the final norm.

    Args:
        input_size: F, features a frame.
        output_size: D, width of every layer.
        attention_heads: H, divides D.
        cgmlp_units: inner width of the gating MLPs, even.
        num_blocks: layers.
        subsampling: `none` (F = D), `linear` and `projection` keep the frame rate, `conv2d1` to
            `conv2d8` divide it by 1 to 8, `conv1d1` to `conv1d3` by 1 to 3.
        dropout: of the input and every module's output.
        attention_dropout: of the attention weights.
        cgmlp_kernel: K of the gates' depthwise convolutions in frames, odd.
        merge_method: how a block merges its branches, see `BranchformerBlock`.
        cgmlp_weight: of the gating MLPs in a `fixed_ave`; one for all blocks, or a list.
        attention_drop: chance of a `learned_ave` to leave attention out of a training step
            (ESPnet's `attn_branch_drop_rate`); one for all blocks, or a list.
        layer_drop: chance of a block to be skipped by a training step.
        position_dropout: of the scaled input and the sinusoids; as `dropout` where None.
        gate_linear: a Linear after the gates' convolution, ESPnet's `use_linear_after_conv`.
        gate_activation: of the gates.
        stochastic_depth: chance of each block to be skipped by a training step, with scaling; one
            for all blocks, or a list.
        attention: the mechanism, any of `speechattn.attention`, for all blocks or a list of one a
            block; `RelativeSelfAttention`, as ESPnet's `latest`, where None.
        intermediate: layers, from 1, whose normalised frames `encode` returns too.
        self_conditioning: V, where these layers condition the next on the CTC head; 0 for none.
        causal: convolutions read nothing to the right of a frame.
        chunk_size: hidden frames a chunk; 0 for whole sequences.
        left_context: hidden frames before its chunk that a frame attends to; -1 for all.
        dynamic_chunk: training draws a chunk size a batch. See `StackedEncoder` for these last.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int = 256,
        attention_heads: int = 4,
        cgmlp_units: int = 2048,
        num_blocks: int = 12,
        subsampling: Subsampling = "conv2d4",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        cgmlp_kernel: int = 31,
        merge_method: MergeMethod = "concat",
        cgmlp_weight: float | list[float] = 0.5,
        attention_drop: float | list[float] = 0.0,
        layer_drop: float = 0.0,
        position_dropout: float | None = None,
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
        weights = per_layer(cgmlp_weight, num_blocks, "cgmlp_weight")
        drops = per_layer(attention_drop, num_blocks, "attention_drop")
        depths = per_layer(stochastic_depth, num_blocks, "stochastic_depth")
        mechanisms = attention_per_layer(attention, num_blocks)
        blocks = [
            BranchformerBlock(
                output_size,
                attention_heads,
                cgmlp_units,
                cgmlp_kernel,
                dropout,
                attention_dropout,
                merge_method,
                weight,
                drop,
                gate_linear,
                gate_activation,
                mechanism,
                causal,
                depth,
            )
            for weight, drop, depth, mechanism in zip(
                weights, drops, depths, mechanisms, strict=True
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
