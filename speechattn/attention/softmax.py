"""Softmax attention with its usual options: heads, positions, norms and a gate.

Legend: B utterances, T frames, D width, H heads, Hq heads of queries, Hkv heads of keys and values,
Dh = D / H width of a head.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from speechattn.attention.base import SelfAttention
from speechattn.attention.cache import AttentionCache
from speechattn.attention.rotary import rotate
from speechattn.dropout import Dropout
from speechattn.kernels.attention.exact import attention
from speechattn.masks import Chunks

Positions = Literal["rotary", "alibi", "none"]
Gate = Literal["none", "head", "channel"]


def alibi_slopes(heads: int) -> Tensor:
    """2^(-8/H), 2^(-16/H), ..., 2^-8 (ALiBi, 2108.12409, section 3), (H,) float32."""
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)


class SoftmaxSelfAttention(SelfAttention):
    """Multi-head softmax attention.

    With its defaults it is multi-head attention with rotary positions (RoFormer, 2104.09864).
    Fewer heads of keys and values are grouped-query (2305.13245) or, with one, multi-query
    attention (1911.02150): the cache shrinks. Fewer heads of queries are sparse-query attention
    (2510.01817): the scores cost less. Hybrid positions (2501.18795) are layers with `rotary` and
    layers with `none`, one beside the other in the encoder's list.

    Time O(T^2) for T frames, memory O(T).

    Args:
        width: D.
        heads: H; D / H is the width of a head, even where positions are rotary.
        dropout: of the attention weights.
        query_heads: Hq, at most H; 0 for H.
        kv_heads: Hkv, divides Hq; 0 for Hq.
        positions: `rotary`; `alibi`, scores fall in proportion to the distance (2108.12409, whose
            slopes are for the past alone: here the same to both sides); or `none`.
        normalise: queries and keys of a head to unit root mean square, times a learnt scale a
            channel (QK-norm, 2010.04245 as in 2501.18795).
        gate: what comes out of attention times the sigmoid of a projection of the input (Gated
            Attention, 2505.06708, place G1): a gate for each `head`, or for each `channel` of it.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        query_heads: int = 0,
        kv_heads: int = 0,
        positions: Positions = "rotary",
        normalise: bool = False,
        gate: Gate = "none",
    ):
        super().__init__()
        name = type(self).__name__
        if width % heads or (positions == "rotary" and width % (2 * heads)):
            parts = "even parts" if positions == "rotary" else "equal parts"
            raise ValueError(f"{name}: {heads} heads do not cut width {width} into {parts}")
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
        self.width = width
        self.heads = heads
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
        q, k, v = self._project(x, 0)
        y = attention(
            q,
            k,
            v,
            lengths,
            chunks,
            self.dropout.p if self.training else 0.0,
            query_lengths=lengths,
            slopes=self.slopes,
        )
        return self._merge(y, x)

    def init_state(self, batch: int) -> AttentionCache:
        """The cache of B streams that have not begun, Hkv heads in it."""
        nothing = self.query.weight.new_zeros(batch, 0, self.kv_heads, self.head_width)
        return AttentionCache(nothing, nothing)

    def step(self, x: Tensor, past: AttentionCache) -> tuple[Tensor, AttentionCache]:
        q, k, v = self._project(x, past.start + past.frames)
        cache = past.append(k, v)
        everything = torch.full((len(x),), cache.frames, device=x.device)
        y = attention(q, cache.key, cache.value, everything, slopes=self.slopes)
        return self._merge(y, x), cache

    def _project(self, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, T, Hq, Dh), keys and values (B, T, Hkv, Dh) of frames from `first` on."""
        q, k, v = (
            f(x).unflatten(-1, (-1, self.head_width)) for f in (self.query, self.key, self.value)
        )
        if self.query_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.positions == "rotary":
            q, k = rotate(q, first), rotate(k, first)
        return q, k, v

    def _merge(self, y: Tensor, x: Tensor) -> Tensor:
        """The heads' (B, T, Hq, Dh), gated by the input (B, T, D), to (B, T, D)."""
        if self.gate is not None:
            gate = self.gate(x).sigmoid()
            y = y * gate.unflatten(-1, (self.query_heads, -1))  # (B, T, Hq, 1 or Dh)
        return self.output(y.flatten(2))
