"""Softmax attention over tokens, with fewer heads of keys and values if need be.

Legend: see `speechattn.attention`; G = H / Hkv heads that share keys.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from speechattn.attention.decoder_base import Cache, Growth, TokenAttention


def shared_heads(name: str, width: int, heads: int, kv_heads: int) -> int:
    """Return Hkv, of an option where 0 stands for H.

    Raises:
        ValueError: the heads do not divide the width, or Hkv does not divide H.
    """
    if heads < 1 or width % heads:
        raise ValueError(f"{name}: {heads} heads do not cut width {width} into equal parts")
    if kv_heads < 0 or heads % (kv_heads or heads):
        raise ValueError(f"{name}: kv_heads is 0 or divides the {heads} heads, not {kv_heads}")
    return kv_heads or heads


class SoftmaxTokenAttention(TokenAttention):
    """Causal multi-head attention; queries, keys and values in one product.

    Fewer heads of keys and values are grouped-query (2305.13245) or, with one, multi-query
    attention (1911.02150): the cache of a search shrinks by H / Hkv.

    Time O(U^2) for U tokens, a step O(U).

    Args:
        width: D.
        heads: H, divides D.
        dropout: of the attention weights.
        kv_heads: Hkv, divides H; 0 for H.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, kv_heads: int = 0):
        super().__init__()
        self.heads = heads
        self.kv_heads = shared_heads(type(self).__name__, width, heads, kv_heads)
        self.head_width = width // heads
        self.dropout = dropout
        self.project = nn.Linear(width, width + 2 * self.kv_heads * self.head_width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self._split(x))
        dropout = self.dropout if self.training else 0.0
        y = scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=self.kv_heads < self.heads
        )
        return self.output(y.transpose(1, 2).flatten(2))

    def tree(self, x: Tensor, path: Tensor, depth: Tensor) -> Tensor:
        q, k, v = self._split(x)
        return self._over(q, k, v, path)

    def empty(self, batch: int, like: Tensor) -> Cache:
        nothing = like.new_empty(batch, 0, self.kv_heads, self.head_width)
        return nothing, nothing

    def step(self, x: Tensor, past: Cache, growth: Growth) -> tuple[Tensor, Cache]:
        q, k, v = self._split(x)
        k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)  # (B, M + K, Hkv, Dh)
        return self._over(q, k, v, growth.path), (k, v)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (N, U, H, Dh), keys and values (N, U, Hkv, Dh)."""
        heads = self.project(x).unflatten(2, (-1, self.head_width))
        return heads.split([self.heads, self.kv_heads, self.kv_heads], 2)

    def _over(self, q: Tensor, k: Tensor, v: Tensor, path: Tensor) -> Tensor:
        """Attend from (B, K, H, Dh) to nodes (B, M, Hkv, Dh) by a path (B, K, M) -> (B, K, D)."""
        b, n = q.shape[:2]
        q, mask = q.transpose(1, 2), path[:, None]
        groups = self.heads // self.kv_heads
        if groups > 1:
            # The heads that share keys are further queries: each key is read once for all.
            q = q.reshape(b, self.kv_heads, groups * n, self.head_width)
            mask = mask.repeat(1, 1, groups, 1)
        dropout = self.dropout if self.training else 0.0
        y = scaled_dot_product_attention(
            q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, dropout_p=dropout
        )
        if groups > 1:
            y = y.reshape(b, self.heads, n, self.head_width)
        return self.output(y.transpose(1, 2).flatten(2))
