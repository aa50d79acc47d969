"""Circular-convolutional attention (CAT, 2504.06704).

Legend: B utterances, T frames, H heads, D width, Dh = D / H width of a head.
"""

from torch import Tensor, finfo, nn

from speechattn.attention.base import SelfAttention
from speechattn.dropout import Dropout
from speechattn.kernels.attention.circular_convolution import circular_convolution
from speechattn.masks import Chunks, padding_mask


class CircularSelfAttention(SelfAttention):
    """One weight a frame and head, moved around the circle that the item's frames make (CAT).

        w = softmax over frames of x A,    y_i = sum over j of w_j v_((i + j) mod T)

    (2504.06704, the form with one projection A of D to H in the place of queries and keys). So what
    a frame says is how much others get of the one that stands as far behind them as it stands
    behind the first. Each item has its own circle, so that a batch does not change it. The paper's
    causal form, whose time is quadratic as that of softmax attention, is left out.

    Time O(T log T) for T frames, memory O(T).

    Args:
        width: D.
        heads: H; divides D.
        dropout: of what the heads give, as weights are shared by all frames.
    """

    patterns = ("noncausal self",)

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ValueError(
                f"CircularSelfAttention: {heads} heads do not cut width {width} into equal parts"
            )
        self.heads = heads
        self.weight = nn.Linear(width, heads)
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
        if chunks is not None:
            raise ValueError(
                "CircularSelfAttention sees whole sequences only: leave chunk_size and "
                "dynamic_chunk at 0 and false"
            )
        hidden = ~padding_mask(lengths, x.shape[1])[..., None]
        # Sums over many frames follow: not in half precision.
        scores = self.weight(x).float() if x.dtype.itemsize < 4 else self.weight(x)
        # The lowest number and not minus infinity: an item without frames gives no NaN.
        weights = scores.masked_fill(hidden, finfo(scores.dtype).min).softmax(1)  # (B, T, H)
        y = circular_convolution(weights, self.value(x).unflatten(-1, (self.heads, -1)), lengths)
        return self.output(self.dropout(y.flatten(2)))
