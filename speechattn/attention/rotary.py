"""Self-attention with rotary positions (RoFormer, 2104.09864, section 3.2).

Legend: B utterances, T frames, H heads, D width, Dh = D / H width of a head.
"""

import torch
from torch import Tensor, nn

from speechattn.attention.base import SelfAttention
from speechattn.attention.cache import AttentionCache
from speechattn.dropout import Dropout
from speechattn.kernels.attention import attention
from speechattn.masks import Chunks


def rotate(x: Tensor, start: int = 0) -> Tensor:
    """Turn each pair of channels of a frame by an angle in proportion to the frame's index.

    The product of two turned vectors depends on the distance of their frames alone. Channel r goes
    with r + Dh/2, and the angle is the index times 10000^(-2r/Dh).

    Args:
        x: (B, T, H, Dh), Dh even.
        start: index of the first frame.

    Returns:
        (B, T, H, Dh) in the dtype of x; angles are taken in float32.
    """
    frames, half = x.shape[1], x.shape[3] // 2
    index = torch.arange(start, start + frames, dtype=torch.float32, device=x.device)
    rate = 10000.0 ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angle = (index[:, None] * rate)[:, None]  # (T, 1, Dh/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class RotarySelfAttention(SelfAttention):
    """Multi-head self-attention, queries and keys turned by their positions.

    Args:
        width: D.
        heads: H; D / H is even.
        dropout: of the attention weights.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if width % (2 * heads):
            raise ValueError(
                f"RotarySelfAttention: {heads} heads do not cut width {width} into even parts"
            )
        self.width = width
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

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
            positions: not used; here so that all self-attention is called alike.
            chunks: what a frame sees; None for its whole item.

        Returns:
            (B, T, D); frames beyond an item's length are of no meaning.
        """
        q, k, v = self._split(x)
        dropout = self.dropout.p if self.training else 0.0
        y = attention(rotate(q), rotate(k), v, lengths, chunks, dropout, query_lengths=lengths)
        return self.output(y.flatten(2))

    def init_state(self, batch: int) -> AttentionCache:
        """The cache of B streams that have not begun."""
        nothing = self.query.weight.new_zeros(batch, 0, self.heads, self.width // self.heads)
        return AttentionCache(nothing, nothing)

    def step(self, x: Tensor, past: AttentionCache) -> tuple[Tensor, AttentionCache]:
        """Attend from the next frames to themselves and to those in the cache; no dropout.

        Args:
            x: (B, c, D).
            past: from `init_state` or the step before; trimmed by `keep`.

        Returns:
            (B, c, D), and the cache with these frames, keys turned.
        """
        q, k, v = self._split(x)
        first = past.start + past.frames
        cache = past.append(rotate(k, first), v)
        everything = torch.full((len(x),), cache.frames, device=x.device)
        y = attention(rotate(q, first), cache.key, cache.value, everything)
        return self.output(y.flatten(2)), cache

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, T, H, Dh)."""
        return tuple(
            f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value)
        )
