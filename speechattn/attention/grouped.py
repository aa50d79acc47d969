"""Grouped self-attention of the Efficient Conformer (2109.01163, section 3.2).

Legend: B utterances, T frames, g frames a group, N = ceil(T / g) groups, H heads, D width,
Dh = g D / H width of a head.
"""

import torch
from torch import Tensor
from torch.nn import functional

from speechattn.attention.positions import relative_positions
from speechattn.attention.relative import RelativeSelfAttention
from speechattn.kernels.attention.relative import relative_attention
from speechattn.masks import without_padding


def grouped_positions(
    frames: int, width: int, group: int = 1, device: torch.device | str = "cpu"
) -> Tensor:
    """Sinusoids of the distances between groups: each has one row for every frame of a group.

    Groups that are r apart get the g distances around r g: 3r + 1, 3r, 3r - 1 for g = 3. An even g
    has no middle, and the distance 0 stands there twice, so that left and right mirror each other.

    Args:
        frames: T, frames in the sequence, at least 1.
        width: D, even.
        group: g.
        device: where to build them.

    Returns:
        (g (2N-1), D) float32, the largest distance i - j between a query i and a key j first. With
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

    Queries, keys and values of g frames are laid end to end, one vector of width g D; attention
    with relative positions runs over the T / g groups, and what comes out is cut into frames again.
    Heads split the long vector, not each frame: a head sees D g / H neighbouring channels of it.
    A last group that is not full is filled with queries, keys and values of zero, whatever stands
    beyond the item in the batch; it takes part like any other.

    The numbers are those of the authors' code on a single utterance, and the parameters those of
    `RelativeSelfAttention`, which it equals with g = 1. The bias of the authors' position
    projection is left out: it adds the same to all the scores of a query, so softmax drops it.

    Args:
        width: D.
        heads: H, divides D.
        group: g, frames a group.
        dropout: of the attention weights.
    """

    patterns = ("noncausal self",)
    init_state = step = None  # a group attends once all of its frames are there

    def __init__(self, width: int, heads: int, group: int = 1, dropout: float = 0.0):
        super().__init__(width, heads, dropout)
        if group < 1:
            raise ValueError(f"GroupedSelfAttention: group is at least 1 frame, not {group}")
        self.group = group

    def forward(self, x: Tensor, lengths: Tensor, positions: Tensor | None = None) -> Tensor:
        """Attend from every group to those with a real frame.

        Args:
            x: (B, T, D), finite everywhere, padding included.
            lengths: (B,) int64. An item of no frames gives finite values, never NaN.
            positions: from `grouped_positions`; built where left out.

        Returns:
            (B, T, D); frames beyond an item's length are of no meaning.
        """
        frames, group, heads = x.shape[1], self.group, self.heads
        if positions is None:
            positions = grouped_positions(frames, self.width, group, x.device).to(x.dtype)
        depth = group * self.width // heads
        q, k, v = (self._groups(f(x), lengths) for f in (self.query, self.key, self.value))
        y = relative_attention(
            q,
            k,
            v,
            self.position(positions).view(-1, heads, depth),  # (2N-1, H, Dh)
            self.content_bias.flatten().repeat(group).view(heads, depth),
            self.position_bias.flatten().repeat(group).view(heads, depth),
            (lengths + group - 1) // group,
            dropout=self.dropout.p if self.training else 0.0,
        )  # (B, N, H, Dh)
        return self.output(y.reshape(len(y), -1, self.width)[:, :frames])

    def _groups(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) to (B, N, H, Dh)."""
        if self.group > 1:
            x = functional.pad(x, (0, 0, 0, -x.shape[1] % self.group))
            x = without_padding(x, lengths)
        return x.reshape(len(x), -1, self.heads, self.group * self.width // self.heads)
