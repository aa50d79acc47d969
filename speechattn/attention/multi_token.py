"""Multi-token attention (2504.00927): weights that depend on neighbouring queries and keys.

Legend: see `speechattn.attention`; A queries of the filter.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechattn.attention.base import HeadSelfAttention
from speechattn.attention.cache import AttentionCache
from speechattn.kernels.attention.multi_token import multi_token_attention


@dataclass(frozen=True)
class MultiTokenState:
    """The state of streams.

    Attributes:
        cache: keys and values.
        queries: (B, A - 1 or fewer, H, Dh), the newest ones.
    """

    cache: AttentionCache
    queries: Tensor

    def keep(self, frames: int) -> "MultiTokenState":
        """Raise ValueError: the filter needs the scores of all keys."""
        raise ValueError("MultiTokenSelfAttention forgets no frames: leave left_context at -1")


class MultiTokenSelfAttention(HeadSelfAttention):
    """Softmax attention with scores convolved over queries and keys, and heads mixed after it.

    The paper's key-query convolution before the softmax and its head mixing after it, both of which
    begin as identity, then RMSNorm of each head and a gate, the sigmoid of a projection of the
    normalised head. Masked scores are 0 to the filters. Positions are rotary.
    As in the authors' code filters see a query and those before it in whole sequences too, and keys
    to both sides. Its second convolution, after the softmax, and its mixing of heads before it,
    both options in section 3.3, are left out.

    Time O(T^2) for T frames, memory O(T).

    Args:
        width: D.
        heads: H; D / H is even.
        dropout: of the attention weights.
        queries: A, of the filter, at least 1; the paper's 6.
        keys: of the filter, at least 1; the paper's 11.
        mixed: heads mixed in a group, divides H; 1 for none, 0 for all, as the paper's 16.
        normalise: norm and gate of the heads.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        *,
        queries: int = 6,
        keys: int = 11,
        mixed: int = 0,
        normalise: bool = True,
    ):
        super().__init__(width, heads, dropout, rotary=True)
        name = type(self).__name__
        if queries < 1 or keys < 1:
            raise ValueError(
                f"{name}: a filter has 1 query and 1 key at least, not {queries} and {keys}"
            )
        mixed = mixed or heads
        if mixed < 1 or heads % mixed:
            raise ValueError(
                f"{name}: groups of {mixed} do not divide {heads} heads: mixed 0 takes all"
            )
        self.filters = nn.Parameter(torch.zeros(heads, queries, keys))
        self.mix = nn.Parameter(torch.eye(mixed).repeat(heads // mixed, 1, 1))
        with torch.no_grad():
            self.filters[:, -1, keys // 2] = 1.0
        self.norm = self.gate = None
        if normalise:
            self.norm = nn.RMSNorm(width // heads, eps=1e-5)
            self.gate = nn.Linear(width // heads, 1)

    def attend(self, x: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        y = multi_token_attention(
            *self.project(x),
            lengths,
            filters=self.filters,
            mix=self.mix,
            causal=causal,
            dropout=self.weight_dropout,
        )
        return self._merge(y)

    def init_state(self, batch: int) -> MultiTokenState:
        """Return the state of B streams before their first frame."""
        cache = super().init_state(batch)
        return MultiTokenState(cache, cache.key)

    def step(self, x: Tensor, past: MultiTokenState) -> tuple[Tensor, MultiTokenState]:
        q, k, v = self.project(x, past.cache.frames)
        cache = past.cache.append(k, v)
        before = past.queries.shape[1]
        q = torch.cat((past.queries.to(q), q), 1)
        everything = torch.full((len(x),), cache.frames, device=x.device)
        options = {"filters": self.filters, "mix": self.mix, "causal": True, "past": before}
        y = multi_token_attention(q, cache.key, cache.value, everything, **options)
        kept = self.filters.shape[1] - 1
        state = MultiTokenState(cache, q[:, max(q.shape[1] - kept, 0) :])
        return self._merge(y), state

    def _merge(self, y: Tensor) -> Tensor:
        """Normalise and gate each head of (B, T, H, Dh), and project to (B, T, D)."""
        if self.norm is not None and self.gate is not None:
            y = self.norm(y)
            y = y * self.gate(y).sigmoid()  # (B, T, H, 1)
        return self.output(y.flatten(2))
