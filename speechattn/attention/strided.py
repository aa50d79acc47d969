"""Strided self-attention of the Efficient Conformer (2109.01163, section 3.3).

Legend: B utterances, T frames, s stride, Tq = ceil(T / s) queries, D width.
"""

from torch import Tensor

from speechattn.attention.positions import relative_positions
from speechattn.attention.relative import RelativeSelfAttention
from speechattn.kernels.attention.strided import strided_attention


class StridedSelfAttention(RelativeSelfAttention):
    """Every s-th frame attends to all frames: downsampling that sees the whole utterance.

    Row i is what `RelativeSelfAttention` with the same parameters gives at frame s i, at 1/s of
    the cost.

    Args:
        width: D.
        heads: H, divides D.
        stride: s.
        dropout: of the attention weights.
    """

    patterns = ("noncausal self",)
    init_state = step = None

    def __init__(self, width: int, heads: int, stride: int = 2, dropout: float = 0.0):
        super().__init__(width, heads, dropout)
        if stride < 1:
            raise ValueError(f"StridedSelfAttention: stride is at least 1, not {stride}")
        self.stride = stride

    def forward(self, x: Tensor, lengths: Tensor, positions: Tensor | None = None) -> Tensor:
        """Attend from frames 0, s, 2s, ... to the real ones.

        Args:
            x: (B, T, D), finite everywhere, padding included.
            lengths: (B,) int64. An item of no frames gives finite values, never NaN.
            positions: (2T-1, D) from `relative_positions`; built where left out.

        Returns:
            (B, Tq, D); an item of n frames has ceil(n / s) that mean something.
        """
        if positions is None:
            positions = relative_positions(x.shape[1], self.width, x.device).to(x.dtype)
        inputs = (
            self.query(x[:, :: self.stride]),
            self.key(x),
            self.value(x),
            self.position(positions),
        )
        y = strided_attention(
            *(t.unflatten(-1, (self.heads, -1)) for t in inputs),
            self.content_bias,
            self.position_bias,
            lengths,
            self.stride,
            self.dropout.p if self.training else 0.0,
        )  # (B, Tq, H, Dh)
        return self.output(y.flatten(2))
