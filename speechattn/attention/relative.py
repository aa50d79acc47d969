"""Self-attention with relative positions (Transformer-XL, 1901.02860, section 3.3).

The arithmetic of ESPnet's "latest" `RelPositionMultiHeadedAttention`.
Legend: B utterances, T frames, H heads, D width, Dh = D / H width of a head.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from speechattn.attention.base import SelfAttention
from speechattn.attention.cache import AttentionCache
from speechattn.attention.distances import KeptDistances
from speechattn.attention.positions import relative_positions
from speechattn.dropout import Dropout
from speechattn.kernels.attention.relative import (
    relative_attention,
    relative_attention_step,
)
from speechattn.masks import Chunks


class RelativeSelfAttention(SelfAttention):
    """Multi-head self-attention over content and relative position.

    score[i, j] = ((q_i + u) . k_j + (q_i + v) . W p_(i-j)) / sqrt(Dh), with a learnt content bias u
    and position bias v per head.

    Time O(T^2) for T frames, memory O(T).

    Args:
        width: D.
        heads: H, divides D.
        dropout: of the attention weights.
    """

    patterns = ("noncausal self", "causal self")
    uses_positions = True

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"RelativeSelfAttention: {heads} heads do not divide width {width}")
        self.width = width
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.position = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.empty(heads, width // heads))
        self.position_bias = nn.Parameter(torch.empty(heads, width // heads))
        self.dropout = Dropout(dropout)
        self._distances = KeptDistances()
        nn.init.xavier_uniform_(self.content_bias)
        nn.init.xavier_uniform_(self.position_bias)

    def train(self, mode: bool = True) -> "RelativeSelfAttention":
        self._distances.forget()
        return super().train(mode)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        chunks: Chunks | None = None,
    ) -> Tensor:
        """Attend from every real frame to the real ones.

        Args:
            x: (B, T, D), finite everywhere, padding included.
            lengths: (B,) int64. An item of no frames gives finite values, never NaN.
            positions: (2T-1, D) from `RelativePositions`; plain sinusoids where left out.
            chunks: what a frame sees; None for its whole item.

        Returns:
            (B, T, D); frames beyond an item's length are of no meaning.
        """
        if positions is None:
            positions = relative_positions(x.shape[1], self.width, x.device).to(x.dtype)
        y = relative_attention(
            *self._split(x),
            self._by_head(self._distances.project(self.position, positions)),
            self.content_bias,
            self.position_bias,
            lengths,
            chunks,
            self.dropout.p if self.training else 0.0,
        )  # (B, T, H, Dh)
        return self.output(y.flatten(2))

    def init_state(self, batch: int) -> AttentionCache:
        """The cache of B streams that have not begun."""
        nothing = self.content_bias.new_zeros(batch, 0, self.heads, self.width // self.heads)
        return AttentionCache(nothing, nothing)

    def step(self, x: Tensor, past: AttentionCache) -> tuple[Tensor, AttentionCache]:
        """Attend from the next frames to themselves and to those in the cache; no dropout.

        Args:
            x: (B, c, D).
            past: from `init_state` or the step before, with the same weights; trimmed by `keep`.

        Returns:
            (B, c, D), and the cache with these frames.
        """
        q, k, v = self._split(x)
        cache = past.append(k, v)
        table = self._table(cache, x)
        centre = table.shape[0] // 2
        band = table[centre - cache.frames + 1 : centre + x.shape[1]]  # distances L-1 to 1-c
        y = relative_attention_step(
            q, cache.key, cache.value, band, self.content_bias, self.position_bias
        )
        return self.output(y.flatten(2)), replace(cache, table=table)

    def _table(self, cache: AttentionCache, x: Tensor) -> Tensor:
        """Projected sinusoids of at least all distances in the cache, (2R-1, H, Dh)."""
        table = cache.table
        if table is None or table.shape[0] < 2 * cache.frames - 1:
            # Twice as many as needed: a growing cache then projects each of them once or twice.
            sinusoids = relative_positions(max(2 * cache.frames, 64), self.width, x.device)
            table = self._by_head(self.position(sinusoids.to(x.dtype)))
        return table

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, T, H, Dh)."""
        return tuple(self._by_head(f(x)) for f in (self.query, self.key, self.value))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))
