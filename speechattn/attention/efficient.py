"""Attention with queries and keys normalised apart (Efficient Attention, 1812.01243).

Legend: B utterances, T frames, H heads, D width, Dh = D / H width of a head, c frames of a step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechattn.attention.base import SelfAttention
from speechattn.attention.lightning import LinearState
from speechattn.dropout import Dropout
from speechattn.kernels.attention.gated_linear import (
    gated_linear_attention,
    gated_linear_attention_step,
)
from speechattn.kernels.attention.linear import linear_attention, linear_attention_state
from speechattn.masks import Chunks, padding_mask


@dataclass(frozen=True)
class EfficientState(LinearState):
    """What the causal form remembers.

    Attributes:
        total: (B, 1, H, Dh), the logarithm of the sum of exp(keys) so far; float32 at least.
    """

    total: Tensor


class EfficientSelfAttention(SelfAttention):
    """Efficient attention (1812.01243, section 3.2, softmax normalisation).

        softmax(q over the channels of a head) (softmax(k over the frames of the item)^T v)

    Each channel of the keys is a weighting of all frames by which the values are summed up once,
    and a frame mixes those sums: time and memory are linear in T, and weights add up to one.
    The paper is not causal. The causal form here is exact: the softmax of the keys runs over the
    frames so far, which makes it gated linear attention, since with L_i = log sum over j <= i of
    exp(k_j) the sums of values are

        S_i = exp(L_(i-1) - L_i) S_(i-1) + exp(k_i - L_i) v_i.

    There are no positions: an encoder's convolutions bring them. A step gives each frame what came
    before it, however many come at once.

    Time and memory O(T) for T frames.

    Args:
        width: D.
        heads: H; divides D.
        dropout: of what the heads give, as there are no weights.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ValueError(
                f"EfficientSelfAttention: {heads} heads do not cut width {width} into equal parts"
            )
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        chunks: Chunks | None = None,
    ) -> Tensor:
        q, k, v = self._project(x)
        if self.only_causal(chunks):
            weights, gates, _ = _running(k)
            y = gated_linear_attention(q, weights.to(v), v, gates, lengths)
        else:
            # The lowest number and not minus infinity: an item without frames gives no NaN.
            hidden = ~padding_mask(lengths, x.shape[1])[..., None, None]
            weights = k.masked_fill(hidden, torch.finfo(k.dtype).min).softmax(1)
            y = linear_attention(q, weights.to(v), v, lengths, causal=False)
        return self.output(self.dropout(y.flatten(2)))

    def init_state(self, batch: int) -> EfficientState:
        q, k, v = self._project(self.query.weight.new_zeros(batch, 0, self.query.in_features))
        nothing = k.new_full((batch, 1, *k.shape[2:]), -torch.inf)
        return EfficientState(linear_attention_state(q, v), nothing)

    def step(self, x: Tensor, past: EfficientState) -> tuple[Tensor, EfficientState]:
        q, k, v = self._project(x)
        weights, gates, total = _running(k, past.total)
        y, sums = gated_linear_attention_step(q, weights.to(v), v, gates, past.sum)
        return self.output(y.flatten(2)), EfficientState(sums, total)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised queries, keys as they are, float32 at least, and values: (B, T, H, Dh)."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value))
        # Sums over many frames follow: not in half precision.
        return q.softmax(-1).to(v), k.to(torch.promote_types(k.dtype, torch.float32)), v


def _running(k: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of keys by the frames so far, and log gates that bring older ones down to that.

    Args:
        k: (B, T, H, Dh).
        past: (B, 1, H, Dh) L before the first of them, minus infinity where that is nothing; None
            for nothing, which has gradients.

    Returns:
        exp(k_i - L_i) and L_(i-1) - L_i, each (B, T, H, Dh), and the last L (B, 1, H, Dh).
    """
    if past is None:
        totals = k.logcumsumexp(1)
        # Nothing is forgotten as the first frame comes.
        first = torch.zeros_like(totals[:, :1])
        gates = torch.cat((first, totals[:, :-1] - totals[:, 1:]), 1)
        return (k - totals).exp(), gates, totals[:, -1:]
    totals = torch.cat((past, k), 1).logcumsumexp(1)
    return (k - totals[:, 1:]).exp(), totals[:, :-1] - totals[:, 1:], totals[:, -1:]
