"""Grouped self-attention of the Efficient Conformer (2109.01163, section 3.2).

Legend: see `speechattn.attention`; g frames of a group, E = ceil(T / g) groups, and here
Dh = g D / H width of a head.
"""

import torch
from torch import Tensor
from torch.nn import functional

from speechattn.attention.base import SelfAttention
from speechattn.attention.positions import relative_positions
from speechattn.attention.relative import RelativeSelfAttention
from speechattn.kernels.attention.relative import relative_attention
from speechattn.masks import Chunks, without_padding


def grouped_positions(
    frames: int, width: int, group: int = 1, device: torch.device | str = "cpu"
) -> Tensor:
    """Return sinusoids of the distances between groups, g rows for each.

    Groups that are r apart get the g distances around r g: 3r + 1, 3r, 3r - 1 for g = 3. For an
    even g the distance 0 appears twice, so that left and right mirror each other.

    Args:
        frames: T, frames in the sequence, at least 1.
        width: D, even.
        group: g.
        device: where to build them.

    Returns:
        (g (2E-1), D) float32, the largest distance i - j between a query i and a key j first. With
        g = 1 they are `relative_positions`.
    """
    frames += -frames % group
    table = relative_positions(frames, width, device)  # (2T-1, D)
    reach, last = group // 2, 2 * frames - 1
    if group % 2:
        return table[reach : last - reach]
    return torch.cat((table[reach:frames], table[frames - 1 : last - reach]))


class GroupedSelfAttention(RelativeSelfAttention):
    """Attention between groups of g neighbouring frames, at 1/g of the cost.

    Queries, keys and values of g frames are concatenated into one vector of width g D; attention
    with relative positions runs over the T / g groups, and its output is split into frames again.
    Heads split the long vector, not each frame: a head has D g / H neighbouring channels of it.
    An incomplete last group is filled up with zero queries, keys and values.

    The numbers are those of the authors' code on a single utterance, and the parameters those of
    `RelativeSelfAttention`, which it equals with g = 1. The bias of the authors' position
    projection is left out: it adds the same to all scores of a query, which softmax ignores.

    Args:
        width: D.
        heads: H, divides D.
        dropout: of the attention weights.
        group: g.
    """

    patterns = ("noncausal self",)
    step = SelfAttention.step  # none: a group needs all of its frames

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, group: int = 1):
        super().__init__(width, heads, dropout)
        if group < 1:
            raise ValueError(f"GroupedSelfAttention: group is at least 1 frame, not {group}")
        self.group = group

    def sinusoids(self, x: Tensor) -> Tensor:
        """Return `grouped_positions` of x (B, T, D)."""
        return grouped_positions(*x.shape[1:], self.group, x.device).to(x.dtype)

    def attend_relative(
        self, x: Tensor, lengths: Tensor, positions: Tensor, chunks: Chunks | None
    ) -> Tensor:
        """Attend between groups, with positions from `grouped_positions`."""
        self.only_causal(chunks)
        frames, group, heads = x.shape[1], self.group, self.heads
        depth = group * self.width // heads
        q, k, v = (self._groups(f(x), lengths) for f in (self.query, self.key, self.value))
        y = relative_attention(
            q,
            k,
            v,
            self.position(positions).view(-1, heads, depth),  # (2E-1, H, Dh)
            self.content_bias.flatten().repeat(group).view(heads, depth),
            self.position_bias.flatten().repeat(group).view(heads, depth),
            lengths=(lengths + group - 1) // group,
            dropout=self.weight_dropout,
        )  # (B, E, H, Dh)
        return self.output(y.reshape(len(y), -1, self.width)[:, :frames])

    def _groups(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Reshape (B, T, D) to (B, E, H, Dh)."""
        if self.group > 1:
            x = functional.pad(x, (0, 0, 0, -x.shape[1] % self.group))
            x = without_padding(x, lengths)
        return x.reshape(len(x), -1, self.heads, self.group * self.width // self.heads)
