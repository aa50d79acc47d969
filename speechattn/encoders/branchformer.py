"""Branchformer encoder (Peng et al., 2207.02971), numerically ESPnet's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speechattn.attention import SelfAttention
from speechattn.dropout import Dropout
from speechattn.encoders.activation import GateActivation
from speechattn.encoders.cgmlp import ConvolutionalGatingMLP
from speechattn.encoders.stacked import LAYER_NORM_EPS, Block, StackedEncoder, per_layer
from speechattn.encoders.streaming import Context
from speechattn.masks import Chunks, chunk_mask, padding_mask

MergeMethod = Literal["concat", "learned_ave", "fixed_ave"]


class LearnedAverage(nn.Module):
    """Weighs two branches by what an attention pooling over time finds in each (section 3.4.2).

    Where the sequence comes in chunks, the pooling of a chunk goes over the frames visible to the
    chunk, so that each chunk has weights of its own.

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
        """Average the branches, side by side (B, T, 2D), with lengths (B,), to (B, T, D)."""
        frames = both.shape[1]
        mask = padding_mask(lengths, frames)[:, None]  # (B, 1, T)
        size = frames if chunks is None else min(chunks.size, frames)
        if chunks is not None:
            mask = mask & chunk_mask(frames, chunks, both.device)[::size]  # (B, n, T)
        weights = self._weights(self._pooled_values(both), mask)  # (B, n, 2)
        return self._average(both, weights.repeat_interleave(size, dim=1)[:, :frames])

    def init_state(self, batch: int) -> Tensor:
        """Return the state of streams that begin, (B, 0, 4): no frame yet."""
        return self.cgmlp_score.weight.new_zeros(batch, 0, 4)

    def step(self, both: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Map the next chunk (B, c, 2D) to (B, c, D); the state is (B, frames so far, 4)."""
        values = torch.cat((past, self._pooled_values(both)), dim=1)  # (B, L + c, 4)
        mask = torch.ones(1, 1, values.shape[1], dtype=torch.bool, device=values.device)
        return self._average(both, self._weights(values, mask)), values

    def _pooled_values(self, both: Tensor) -> Tensor:
        """Return both branches' scores and what each frame adds to their weights, (B, T, 4)."""
        # A branch's weight is linear in the pooled frame, so pool it: one number instead of D.
        broad, local = both.chunk(2, dim=-1)
        scores = (self.attention_score(broad), self.cgmlp_score(local))
        values = (self.attention_weight(broad), self.cgmlp_weight(local))
        return torch.cat((*(s / self.width**0.5 for s in scores), *values), dim=-1)

    def _weights(self, values: Tensor, mask: Tensor) -> Tensor:
        """Map values (B, T, 4) and a mask (B, n, T) to the weights of the branches (B, n, 2)."""
        scores, values = values.transpose(1, 2)[:, :, None].chunk(2, dim=1)  # (B, 2, 1, T)
        # The lowest number and not -inf: an item of no frames must not give NaN.
        scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
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
        attention: makes the mechanism, of width D.
        dropout: of every module's output and inside the gate.
        stochastic_depth: see `Block`; for the others see `BranchformerEncoder`.
    """

    def __init__(
        self,
        width: int,
        attention: Callable[[], SelfAttention],
        *,
        cgmlp_units: int,
        cgmlp_kernel: int,
        dropout: float = 0.1,
        merge_method: MergeMethod = "concat",
        cgmlp_weight: float = 0.5,
        attention_drop: float = 0.0,
        gate_linear: bool = False,
        gate_activation: GateActivation = "identity",
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
        self.cgmlp_weight, self.attention_drop = cgmlp_weight, attention_drop
        self.attention = self.cgmlp = self.average = None
        if not (fixed and cgmlp_weight == 1):
            self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.attention = attention()
        if not (fixed and cgmlp_weight == 0):
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
        if merge_method == "learned_ave":
            self.average = LearnedAverage(width)
        self.concat = merge_method == "concat"
        self.merge = nn.Linear(2 * width if self.concat else width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def stateful_modules(self) -> Sequence[nn.Module]:
        return [m for m in (self.attention, self.cgmlp, self.average) if m is not None]

    def run(self, x: Tensor, context: Context, scale: float) -> Tensor:
        branches = []
        if self.attention is not None and not self._drops_attention():
            y = context.attend(self.attention, self.attention_norm(x))
            branches.append(self.dropout(y))
        if self.cgmlp is not None:
            y = context.convolve(self.cgmlp, self.cgmlp_norm(x))
            branches.append(self.dropout(y))
        y = self.merge(self._merge_branches(branches, context))
        return self.norm(torch.add(x, self.dropout(y), alpha=scale))

    def _merge_branches(self, branches: list[Tensor], context: Context) -> Tensor:
        """Merge one or two (B, T, D) to (B, T, D), or to (B, T, 2D) where they are concatenated."""
        if len(branches) == 1:
            return branches[0]
        if self.concat:
            return torch.cat(branches, dim=-1)
        if self.average is not None:
            return context.pool(self.average, torch.cat(branches, dim=-1))
        return torch.lerp(*branches, self.cgmlp_weight)

    def _drops_attention(self) -> bool:
        if self.average is None or not self.training or self.attention_drop == 0:
            return False
        return torch.rand(()).item() < self.attention_drop


@dataclass(eq=False, repr=False, kw_only=True)
class BranchformerEncoder(StackedEncoder):
    """Branchformer: ESPnet's `BranchformerEncoder` with `rel_pos_type: latest`.

    ESPnet's has no intermediate layers; here they go through the final norm.

    Args:
        cgmlp_units: inner width of the gating MLPs, even.
        cgmlp_kernel: K of the gates' depthwise convolutions in frames, odd.
        merge_method: of a block's branches: `concat` and a Linear, `learned_ave`, or `fixed_ave` by
            `cgmlp_weight`.
        cgmlp_weight: of the gating MLPs in a `fixed_ave`, 0 to 1; at the ends the other branch is
            left out. One for all blocks, or a list.
        attention_drop: chance of a `learned_ave` to leave attention out of a training step
            (ESPnet's `attn_branch_drop_rate`); one for all blocks, or a list.
        gate_linear: a Linear after the gates' convolution, ESPnet's `use_linear_after_conv`.
        gate_activation: of the gates.
    """

    cgmlp_units: int = 2048
    cgmlp_kernel: int = 31
    merge_method: MergeMethod = "concat"
    cgmlp_weight: float | list[float] = 0.5
    attention_drop: float | list[float] = 0.0
    gate_linear: bool = False
    gate_activation: GateActivation = "identity"

    def make_block(
        self, layer: int, attention: Callable[[], SelfAttention], stochastic_depth: float
    ) -> BranchformerBlock:
        return BranchformerBlock(
            self.output_size,
            attention,
            cgmlp_units=self.cgmlp_units,
            cgmlp_kernel=self.cgmlp_kernel,
            dropout=self.dropout,
            merge_method=self.merge_method,
            cgmlp_weight=per_layer(self.cgmlp_weight, self.num_blocks, "cgmlp_weight")[layer],
            attention_drop=per_layer(self.attention_drop, self.num_blocks, "attention_drop")[layer],
            gate_linear=self.gate_linear,
            gate_activation=self.gate_activation,
            causal=self.causal,
            stochastic_depth=stochastic_depth,
        )
