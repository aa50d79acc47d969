"""Self-attention with relative positions (Transformer-XL, 1901.02860, section 3.3).

The arithmetic of ESPnet's "latest" `RelPositionMultiHeadedAttention`.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from speechattn.attention.base import HeadSelfAttention, split_heads
from speechattn.attention.cache import AttentionCache
from speechattn.attention.distances import DistanceCache
from speechattn.attention.positions import relative_positions
from speechattn.kernels.attention.relative import relative_attention, relative_attention_step
from speechattn.masks import Chunks


class RelativeSelfAttention(HeadSelfAttention):
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
        super().__init__(width, heads, dropout)
        self.position = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.empty(heads, width // heads))
        self.position_bias = nn.Parameter(torch.empty(heads, width // heads))
        self._distances = DistanceCache()
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
        """Attend within each utterance; plain sinusoids where positions are left out."""
        if positions is None:
            positions = self.sinusoids(x)
        return self.attend_relative(x, lengths, positions, chunks)

    def sinusoids(self, x: Tensor) -> Tensor:
        """Return the sinusoids of the distances in x (B, T, D), (2T-1, D)."""
        return relative_positions(x.shape[1], self.width, x.device).to(x.dtype)

    def attend_relative(
        self, x: Tensor, lengths: Tensor, positions: Tensor, chunks: Chunks | None
    ) -> Tensor:
        """Attend within each utterance; see `SelfAttention.forward`."""
        y = relative_attention(
            *self.project(x),
            *split_heads(self.heads, self._distances.project(self.position, positions)),
            self.content_bias,
            self.position_bias,
            lengths=lengths,
            chunks=chunks,
            dropout=self.weight_dropout,
        )  # (B, T, H, Dh)
        return self.output(y.flatten(2))

    def step(self, x: Tensor, past: AttentionCache) -> tuple[Tensor, AttentionCache]:
        q, k, v = self.project(x)
        cache = past.append(k, v)
        table = self._table(cache, x)
        centre = table.shape[0] // 2
        band = table[centre - cache.frames + 1 : centre + x.shape[1]]  # distances L-1 to 1-c
        y = relative_attention_step(
            q, cache.key, cache.value, band, self.content_bias, self.position_bias
        )
        return self.output(y.flatten(2)), replace(cache, table=table)

    def _table(self, cache: AttentionCache, x: Tensor) -> Tensor:
        """Return projected sinusoids of at least all distances in the cache, (.., H, Dh)."""
        table = cache.table
        if table is None or table.shape[0] < 2 * cache.frames - 1:
            # Twice as many as needed: a growing cache then projects each of them once or twice.
            sinusoids = relative_positions(max(2 * cache.frames, 64), self.width, x.device)
            (table,) = split_heads(self.heads, self.position(sinusoids.to(x.dtype)))
        return table
