"""Attention with queries and keys normalised separately (Efficient Attention, 1812.01243)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from speechattn.attention.base import HeadSelfAttention
from speechattn.attention.lightning import LinearState
from speechattn.kernels.attention.gated_linear import (
    gated_linear_attention,
    gated_linear_attention_step,
)
from speechattn.kernels.attention.linear import linear_attention, linear_attention_state
from speechattn.masks import padding_mask


@dataclass(frozen=True)
class EfficientState(LinearState):
    """The state of the causal form.

    Attributes:
        total: (B, 1, H, Dh), the log of the sum of exp(keys) so far; float32 at least.
    """

    total: Tensor


class EfficientSelfAttention(HeadSelfAttention):
    """Efficient attention (1812.01243, section 3.2, softmax normalisation).

        softmax(q over the channels of a head) (softmax(k over the frames)^T v)

    Each channel of the keys weights all frames, the values are summed once by these weights, and a
    frame mixes the sums: time and memory are linear in T, and weights add up to one.
    The paper is not causal. The causal form here is exact: the softmax of the keys runs over the
    frames so far, which makes it gated linear attention, since with L_i = log sum over j <= i of
    exp(k_j) the sums of values are

        S_i = exp(L_(i-1) - L_i) S_(i-1) + exp(k_i - L_i) v_i.

    There are no positions: an encoder's convolutions bring them. A step is causal frame by frame,
    however many frames come at once.

    Time and memory O(T) for T frames.

    Args:
        width: D.
        heads: H; divides D.
        dropout: of the heads' outputs, as there are no weights.
    """

    patterns = ("noncausal self", "causal self")

    def attend(self, x: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        q, k, v = self._features(x)
        if causal:
            weights, gates, _ = _running(k)
            y = gated_linear_attention(q, weights.to(v), v, gates, lengths)
        else:
            # The lowest number and not minus infinity: an utterance of no frames gives no NaN.
            hidden = ~padding_mask(lengths, x.shape[1])[..., None, None]
            weights = k.masked_fill(hidden, torch.finfo(k.dtype).min).softmax(1)
            y = linear_attention(q, weights.to(v), v, lengths, causal=False)
        return self.output(self.dropout(y.flatten(2)))

    def init_state(self, batch: int) -> EfficientState:
        """Return the state of B streams before their first frame."""
        q, k, v = self._features(self.query.weight.new_zeros(batch, 0, self.width))
        nothing = k.new_full((batch, 1, *k.shape[2:]), -torch.inf)
        return EfficientState(linear_attention_state(q, v), nothing)

    def step(self, x: Tensor, past: EfficientState) -> tuple[Tensor, EfficientState]:
        q, k, v = self._features(x)
        weights, gates, total = _running(k, past.total)
        y, sums = gated_linear_attention_step(q, weights.to(v), v, gates, past.sum)
        return self.output(y.flatten(2)), EfficientState(sums, total)

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalised queries, keys in float32 at least, and values: (B, T, H, Dh)."""
        q, k, v = self.project(x)
        # Sums over many frames follow: not in half precision.
        return q.softmax(-1).to(v), k.to(torch.promote_types(k.dtype, torch.float32)), v


def _running(k: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return exp(k_i - L_i), the log gates L_(i-1) - L_i, and the last L (B, 1, H, Dh).

    `past` is the L before the first key, minus infinity at the start of a stream; None there with
    gradients.
    """
    if past is None:
        totals = k.logcumsumexp(1)
        # Nothing is forgotten as the first frame comes.
        first = torch.zeros_like(totals[:, :1])
        gates = torch.cat((first, totals[:, :-1] - totals[:, 1:]), 1)
        return (k - totals).exp(), gates, totals[:, -1:]
    totals = torch.cat((past, k), 1).logcumsumexp(1)
    return (k - totals[:, 1:]).exp(), totals[:, :-1] - totals[:, 1:], totals[:, -1:]
