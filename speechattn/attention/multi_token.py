"""Multi-token attention (2504.00927): weights that hang on neighbouring queries and keys together.

Legend: B utterances, T frames, D width, H heads, Dh = D / H width of a head, c frames of a step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechattn.attention.base import SelfAttention
from speechattn.attention.cache import AttentionCache
from speechattn.attention.rotary import rotate
from speechattn.dropout import Dropout
from speechattn.kernels.attention.multi_token import multi_token_attention
from speechattn.masks import Chunks


@dataclass(frozen=True)
class MultiTokenState:
    """What streams remember.

    Attributes:
        cache: keys and values.
        queries: (B, A - 1 or fewer, H, Dh), the newest.
    """

    cache: AttentionCache
    queries: Tensor

    def keep(self, frames: int) -> "MultiTokenState":
        """Raise ValueError: filtered scores of keys that are gone would be others."""
        raise ValueError("MultiTokenSelfAttention forgets no frames: leave left_context at -1")


class MultiTokenSelfAttention(SelfAttention):
    """Softmax attention whose scores are convolved over queries and keys, and heads mixed after.

    The paper's key-query convolution before the softmax and its head mixing after it, both of which
    begin as identity, then RMSNorm of each head and a gate for it, the sigmoid of a projection of
    what the norm gave. Scores that are not seen are 0 to the filters. Positions are rotary.
    What we chose: filters see a query and those before it in whole sequences too, and keys to both
    sides, as in the authors' program. Its second convolution, after the softmax, and its mixing of
    heads before it are left out; section 3.3 has both as options.

    Time O(T^2) for T frames, memory O(T).

    Args:
        width: D.
        heads: H; D / H is even.
        dropout: of the attention weights.
        queries: A, of the filter, at least 1; the paper's 6.
        keys: of the filter, at least 1; the paper's 11.
        mixed: heads of a group that are mixed, divides H; 1 for none, 0 for all, as the paper's 16.
        normalise: norm and gate of the heads.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        queries: int = 6,
        keys: int = 11,
        mixed: int = 0,
        normalise: bool = True,
    ):
        super().__init__()
        name = type(self).__name__
        if width % (2 * heads):
            raise ValueError(f"{name}: {heads} heads do not cut width {width} into even parts")
        if queries < 1 or keys < 1:
            raise ValueError(
                f"{name}: a filter has 1 query and 1 key at least, not {queries} and {keys}"
            )
        mixed = mixed or heads
        if mixed < 1 or heads % mixed:
            raise ValueError(
                f"{name}: groups of {mixed} do not divide {heads} heads: mixed 0 takes all"
            )
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.filters = nn.Parameter(torch.zeros(heads, queries, keys))
        self.mix = nn.Parameter(torch.eye(mixed).repeat(heads // mixed, 1, 1))
        with torch.no_grad():
            self.filters[:, -1, keys // 2] = 1.0
        self.norm = self.gate = None
        if normalise:
            self.norm = nn.RMSNorm(width // heads, eps=1e-5)
            self.gate = nn.Linear(width // heads, 1)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        chunks: Chunks | None = None,
    ) -> Tensor:
        causal = self.only_causal(chunks)
        q, k, v = self._project(x, 0)
        dropout = self.dropout.p if self.training else 0.0
        y = multi_token_attention(q, k, v, lengths, self.filters, self.mix, causal, dropout)
        return self._merge(y)

    def init_state(self, batch: int) -> MultiTokenState:
        nothing = self.query.weight.new_zeros(batch, 0, self.query.in_features)
        nothing = nothing.unflatten(2, (self.heads, -1))
        return MultiTokenState(AttentionCache(nothing, nothing), nothing)

    def step(self, x: Tensor, past: MultiTokenState) -> tuple[Tensor, MultiTokenState]:
        q, k, v = self._project(x, past.cache.frames)
        cache = past.cache.append(k, v)
        before = past.queries.shape[1]
        q = torch.cat((past.queries.to(q), q), 1)
        everything = torch.full((len(x),), cache.frames, device=x.device)
        y = multi_token_attention(
            q, cache.key, cache.value, everything, self.filters, self.mix, True, past=before
        )
        kept = self.filters.shape[1] - 1
        state = MultiTokenState(cache, q[:, max(q.shape[1] - kept, 0) :])
        return self._merge(y), state

    def _project(self, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, T, H, Dh) of frames from `first` on."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value))
        return rotate(q, first), rotate(k, first), v

    def _merge(self, y: Tensor) -> Tensor:
        """The heads' (B, T, H, Dh), each normalised and gated, to (B, T, D)."""
        if self.norm is not None and self.gate is not None:
            y = self.norm(y)
            y = y * self.gate(y).sigmoid()  # (B, T, H, 1)
        return self.output(y.flatten(2))
