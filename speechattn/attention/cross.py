"""The contract of a decoder's cross-attention, and softmax over keys of the memory.

Legend: see `speechattn.attention`; G = H / Hkv heads that share keys.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from speechattn.attention.base import Pattern
from speechattn.attention.token_softmax import shared_heads

# Projections of the memory, computed once, each (B, ...).
Keys = tuple[Tensor, ...]
# The state of each hypothesis (its last alignment, say), each (N, ...).
CrossState = tuple[Tensor, ...]


class CrossAttention(nn.Module):
    """Attention from the tokens of sequences to the memory.

    A subclass is constructed as `(width, memory_size, heads, dropout=0.0, *, its own options with
    defaults)`. A token may depend on the tokens before it, never on later ones.

    Attributes:
        patterns: those of CAB (2210.07661) that it serves.
    """

    patterns: ClassVar[tuple[Pattern, ...]] = ("causal cross",)

    def keys(self, memory: Tensor) -> Keys:
        """Project the memory (B, T, memory_size), once for all queries."""
        raise NotImplementedError

    def forward(self, x: Tensor, keys: Keys, mask: Tensor | None) -> Tensor:
        """Attend from whole sequences.

        Args:
            x: (N, U, D).
            keys: from `keys`.
            mask: (B, 1, 1, T) bool, True where a frame is real, at least one of an utterance;
                None if all are.

        Returns:
            (N, U, D).
        """
        raise NotImplementedError

    def weights(self, x: Tensor, keys: Keys, mask: Tensor | None) -> Tensor:
        """Return the weights of `forward`, (N, H, U, T), 0 on padding."""
        raise NotImplementedError

    def tree(
        self, x: Tensor, path: Tensor, depth: Tensor, keys: Keys, mask: Tensor | None
    ) -> Tensor:
        """Attend from sequences that share prefixes, as in `TokenAttention.tree`."""
        raise NotImplementedError

    def start(self, keys: Keys) -> CrossState:
        """Return the state before the first token, of one hypothesis per utterance."""
        return ()

    def step(
        self, x: Tensor, keys: Keys, mask: Tensor | None, state: CrossState
    ) -> tuple[Tensor, CrossState]:
        """Attend from one token of each hypothesis; no dropout.

        Args:
            x: (B, K, D).
            keys: from `keys`.
            mask: as in `forward`.
            state: of the N hypotheses.

        Returns:
            (B, K, D), and the new state.
        """
        raise NotImplementedError


# Makes a mechanism from width, width of the memory, heads and dropout.
CrossAttentionFactory = Callable[[int, int, int, float], CrossAttention]


class SoftmaxCrossAttention(CrossAttention):
    """Multi-head attention over a memory whose keys and values are projected once.

    Fewer heads of keys and values are grouped-query (2305.13245) or, with one, multi-query
    attention (1911.02150): the keys of a search shrink by H / Hkv.

    Time O(T) for each token over T frames.

    Args:
        width: D.
        memory_size: width of the memory.
        heads: H, divides D.
        dropout: of the attention weights.
        kv_heads: Hkv, divides H; 0 for H.
    """

    patterns = ("noncausal cross", "causal cross")

    def __init__(
        self, width: int, memory_size: int, heads: int, dropout: float = 0.0, *, kv_heads: int = 0
    ):
        super().__init__()
        self.heads = heads
        self.kv_heads = shared_heads(type(self).__name__, width, heads, kv_heads)
        self.head_width = width // heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(memory_size, 2 * self.kv_heads * self.head_width)
        self.output = nn.Linear(width, width)

    def keys(self, memory: Tensor) -> Keys:
        """Project (B, T, memory_size) to keys and values, each (B, Hkv, T, Dh)."""
        b, t, _ = memory.shape
        kv = self.key_value(memory).view(b, t, 2, self.kv_heads, self.head_width)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def forward(self, x: Tensor, keys: Keys, mask: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        q = self._queries(x, keys[0].size(0))
        y = scaled_dot_product_attention(q, *keys, attn_mask=mask, dropout_p=dropout)
        y = y.reshape(y.size(0), self.heads, -1, self.head_width).transpose(1, 2)  # (B, Q, H, Dh)
        return self.output(y.flatten(2)).view_as(x)

    def weights(self, x: Tensor, keys: Keys, mask: Tensor | None) -> Tensor:
        q, k = self._queries(x, keys[0].size(0)), keys[0]
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_width)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = scores.softmax(-1)  # (B, Hkv, G * K * U, T)
        weights = weights.view(k.size(0), self.heads, -1, x.size(1), k.size(2))
        return weights.transpose(1, 2).flatten(0, 1)

    def tree(
        self, x: Tensor, path: Tensor, depth: Tensor, keys: Keys, mask: Tensor | None
    ) -> Tensor:
        return self(x, keys, mask)

    def step(
        self, x: Tensor, keys: Keys, mask: Tensor | None, state: CrossState
    ) -> tuple[Tensor, CrossState]:
        return self(x, keys, mask), state

    def _queries(self, x: Tensor, utterances: int) -> Tensor:
        """Reshape (N, U, D) to (B, Hkv, G * Q, Dh) with Q = K * U."""
        # The hypotheses of an utterance, and the heads that share keys, are the queries of one
        # attention over its memory, which is read once for all of them.
        q = self.query(x).view(utterances, -1, self.heads, self.head_width).transpose(1, 2)
        if self.kv_heads == self.heads:
            return q
        return q.reshape(utterances, self.kv_heads, -1, self.head_width)


def grouped_context(weights: Tensor, values: Tensor) -> Tensor:
    """Sum up values (B, H, T, Dh) by the weights (N, U, H, T) of hypotheses, to (N, U, D)."""
    n, u = weights.shape[:2]
    b, h, t, _ = values.shape
    w = weights.reshape(b, -1, h, t).transpose(1, 2)  # (B, H, K * U, T)
    return torch.matmul(w, values).transpose(1, 2).reshape(n, u, -1)
