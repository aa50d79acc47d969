"""Strided self-attention of the Efficient Conformer (2109.01163, section 3.3).

Legend: see `speechattn.attention`; s stride, Tq = ceil(T / s) queries.
"""

from torch import Tensor

from speechattn.attention.base import SelfAttention, split_heads
from speechattn.attention.relative import RelativeSelfAttention
from speechattn.kernels.attention.strided import strided_attention
from speechattn.masks import Chunks


class StridedSelfAttention(RelativeSelfAttention):
    """Attention from every s-th frame to all frames: downsampling that sees the whole utterance.

    Row i is the output of `RelativeSelfAttention` with the same parameters at frame s i, at 1/s of
    the cost.

    Args:
        width: D.
        heads: H, divides D.
        dropout: of the attention weights.
        stride: s.
    """

    patterns = ("noncausal self",)
    step = SelfAttention.step  # none

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, stride: int = 2):
        super().__init__(width, heads, dropout)
        if stride < 1:
            raise ValueError(f"StridedSelfAttention: stride is at least 1, not {stride}")
        self.stride = stride

    def attend_relative(
        self, x: Tensor, lengths: Tensor, positions: Tensor, chunks: Chunks | None
    ) -> Tensor:
        """Return (B, Tq, D), of which an utterance of n frames has ceil(n / s)."""
        self.only_causal(chunks)
        q = self.query(x[:, :: self.stride])
        y = strided_attention(
            *split_heads(self.heads, q, self.key(x), self.value(x), self.position(positions)),
            self.content_bias,
            self.position_bias,
            lengths=lengths,
            stride=self.stride,
            dropout=self.weight_dropout,
        )  # (B, Tq, H, Dh)
        return self.output(y.flatten(2))
