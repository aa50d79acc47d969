"""Softmax attention with its usual options: heads, positions, norms and a gate.

Legend: see `speechattn.attention`; Hq heads of queries.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from speechattn.attention.base import SelfAttention, check_heads
from speechattn.attention.cache import AttentionCache
from speechattn.attention.rotary import rotate
from speechattn.dropout import Dropout
from speechattn.kernels.attention.exact import attention
from speechattn.masks import Chunks

Positions = Literal["rotary", "alibi", "none"]
Gate = Literal["none", "head", "channel"]


def alibi_slopes(heads: int) -> Tensor:
    """Return the slopes of ALiBi (2108.12409, section 3), (H,) float32.

    2^(-8/H), 2^(-16/H), ..., 2^-8 for a power of two. For other numbers, as in the authors' code,
    the slopes of the next lower power P come first, then every second one of 2P.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = 2.0 ** (-8.0 * torch.arange(1, power + 1) / power)
    if power == heads:
        return slopes
    return torch.cat((slopes, alibi_slopes(2 * power)[::2][: heads - power]))


class SoftmaxSelfAttention(SelfAttention):
    """Multi-head softmax attention.

    With its defaults it is multi-head attention with rotary positions (RoFormer, 2104.09864).
    Fewer heads of keys and values are grouped-query (2305.13245) or, with one, multi-query
    attention (1911.02150): the cache shrinks. Fewer heads of queries are sparse-query attention
    (2510.01817): the scores cost less. Hybrid positions (2501.18795) are an encoder's list of
    layers with `rotary` and layers with `none`.

    Time O(T^2) for T frames, memory O(T).

    Args:
        width: D.
        heads: H; D / H is the width of a head, even where positions are rotary.
        dropout: of the attention weights.
        query_heads: Hq, at most H; 0 for H.
        kv_heads: Hkv, divides Hq; 0 for Hq.
        positions: `rotary`; `alibi`, scores fall in proportion to the distance (2108.12409, which
            is causal; here the same slopes to both sides); or `none`.
        normalise: queries and keys of a head to unit root mean square, times a learnt scale per
            channel (QK-norm, 2010.04245 as in 2501.18795).
        gate: multiply the output by the sigmoid of a projection of the input (Gated Attention,
            2505.06708, place G1): one gate per `head`, or per `channel` of it.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        *,
        query_heads: int = 0,
        kv_heads: int = 0,
        positions: Positions = "rotary",
        normalise: bool = False,
        gate: Gate = "none",
    ):
        super().__init__()
        name = type(self).__name__
        check_heads(name, width, heads, positions == "rotary")
        self.query_heads = query_heads or heads
        self.kv_heads = kv_heads or self.query_heads
        if not 0 < self.query_heads <= heads:
            raise ValueError(f"{name}: query_heads is from 1 to {heads}, not {query_heads}")
        if self.kv_heads < 1 or self.query_heads % self.kv_heads:
            raise ValueError(
                f"{name}: {self.kv_heads} heads of keys do not divide {self.query_heads} of queries"
            )
        if positions not in ("rotary", "alibi", "none"):
            raise ValueError(f"{name}: positions are rotary, alibi or none, not {positions!r}")
        if gate not in ("none", "head", "channel"):
            raise ValueError(f"{name}: gate is none, head or channel, not {gate!r}")
        self.width, self.heads = width, heads
        self.head_width = width // heads
        self.positions = positions
        inner = self.query_heads * self.head_width
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, self.kv_heads * self.head_width)
        self.value = nn.Linear(width, self.kv_heads * self.head_width)
        self.output = nn.Linear(inner, width)
        self.query_norm = self.key_norm = self.gate = None
        if normalise:
            self.query_norm = nn.RMSNorm(self.head_width, eps=1e-6)
            self.key_norm = nn.RMSNorm(self.head_width, eps=1e-6)
        if gate != "none":
            self.gate = nn.Linear(width, self.query_heads if gate == "head" else inner)
        self.slopes: Tensor | None
        slopes = alibi_slopes(self.query_heads) if positions == "alibi" else None
        self.register_buffer("slopes", slopes, persistent=False)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        chunks: Chunks | None = None,
    ) -> Tensor:
        y = attention(
            *self._project(x, 0),
            lengths,
            chunks=chunks,
            dropout=self.dropout.p if self.training else 0.0,
            query_lengths=lengths,
            slopes=self.slopes,
        )
        return self._merge(y, x)

    def init_state(self, batch: int) -> AttentionCache:
        """Return the empty cache of B streams, with Hkv heads."""
        nothing = self.query.weight.new_zeros(batch, 0, self.kv_heads, self.head_width)
        return AttentionCache(nothing, nothing)

    def step(self, x: Tensor, past: AttentionCache) -> tuple[Tensor, AttentionCache]:
        q, k, v = self._project(x, past.start + past.frames)
        cache = past.append(k, v)
        everything = torch.full((len(x),), cache.frames, device=x.device)
        y = attention(q, cache.key, cache.value, everything, slopes=self.slopes)
        return self._merge(y, x), cache

    def _project(self, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, T, Hq, Dh), keys and values (B, T, Hkv, Dh) from index `first` on."""
        q, k, v = (
            f(x).unflatten(-1, (-1, self.head_width)) for f in (self.query, self.key, self.value)
        )
        if self.query_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.positions == "rotary":
            q, k = rotate(q, first), rotate(k, first)
        return q, k, v

    def _merge(self, y: Tensor, x: Tensor) -> Tensor:
        """Gate (B, T, Hq, Dh) by the input (B, T, D) and project to (B, T, D)."""
        if self.gate is not None:
            gate = self.gate(x).sigmoid()
            y = y * gate.unflatten(-1, (self.query_heads, -1))  # (B, T, Hq, 1 or Dh)
        return self.output(y.flatten(2))
