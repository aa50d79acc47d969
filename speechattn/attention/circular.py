"""Circular-convolutional attention (CAT, 2504.06704)."""

from torch import Tensor, finfo, nn

from speechattn.attention.base import SelfAttention, check_heads, split_heads
from speechattn.dropout import Dropout
from speechattn.kernels.attention.circular_convolution import circular_convolution
from speechattn.masks import padding_mask


class CircularSelfAttention(SelfAttention):
    """One weight per frame and head, rotated along the utterance (CAT).

        w = softmax over frames of x A,    y_i = sum over j of w_j v_((i + j) mod T)

    (2504.06704, the form with one projection A of D to H in place of queries and keys): w_j is the
    weight of the frame j places further, wrapping round at the end. Each utterance wraps at its own
    length, whatever the batch. The paper's causal form is left out: it is quadratic in time, as
    softmax attention is.

    Time O(T log T) for T frames, memory O(T).

    Args:
        width: D.
        heads: H; divides D.
        dropout: of what the heads give, as weights are shared by all frames.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        check_heads("CircularSelfAttention", width, heads)
        self.heads = heads
        self.weight = nn.Linear(width, heads)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def attend(self, x: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        hidden = ~padding_mask(lengths, x.shape[1])[..., None]
        # Sums over many frames follow: not in half precision.
        scores = self.weight(x).float() if x.dtype.itemsize < 4 else self.weight(x)
        # The lowest number and not minus infinity: an utterance of no frames gives no NaN.
        weights = scores.masked_fill(hidden, finfo(scores.dtype).min).softmax(1)  # (B, T, H)
        y = circular_convolution(weights, *split_heads(self.heads, self.value(x)), lengths)
        return self.output(self.dropout(y.flatten(2)))
