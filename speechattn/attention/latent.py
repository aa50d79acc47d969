"""Latent attention over tokens, compressed along time too (MTLA, 2505.13544).

Legend: see `speechattn.attention`; r width of a latent, R channels with rotary positions, s stride.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, scaled_dot_product_attention

from speechattn.attention.decoder_base import Cache, Growth, TokenAttention
from speechattn.attention.sinusoids import grown, sinusoids
from speechattn.attention.token_softmax import shared_heads


class LatentTokenAttention(TokenAttention):
    """Causal attention with one cached latent for every s tokens, shared by all heads.

    A token u becomes a latent c_u of r channels, from which each head computes its keys and values
    (multi-head latent attention, DeepSeek-V2, 2405.04434, section 2.1). The s tokens of a group
    are merged into one (2505.13544, section 4):

        m_j = sum of w_u c_u over the tokens u of group j so far,
        w_u = sigmoid(merge_position(e_j) . merge_latent(c_u)),

    e_j being sinusoids of the group's index, from 0. A token sees complete groups, and its own up
    to itself: in training by the stride-aware mask, where position n is visible to m if n = m, or
    if n < m is the last of a group. A longer group replaces the shorter one in the cache, so t
    tokens take ceil(t / s) places.

    As in the authors' code latents are layer-normalised, the two layers of the merge have r / 4
    outputs, and queries are not compressed. Stride 1 merges nothing and is plain latent attention.

    Time O(U^2) for U tokens, a step O(U / s).

    Args:
        width: D.
        heads: H, divides D.
        dropout: of the attention weights.
        rank: r, even; 0 for 4 * Dh as in the paper.
        stride: s.
        rotary: R, even: further channels of queries and keys, rotated by the token's position, a
            group's by that of its last token (decoupled rotary positions, section 4.4; the paper
            has Dh / 2). 0 for none: a decoder's embeddings hold positions.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        *,
        rank: int = 0,
        stride: int = 2,
        rotary: int = 0,
    ):
        super().__init__()
        name = type(self).__name__
        shared_heads(name, width, heads, 0)
        self.heads = heads
        self.head_width = width // heads
        self.rank = rank or 4 * self.head_width
        if self.rank < 2 or self.rank % 2 or rotary < 0 or rotary % 2:
            raise ValueError(f"{name}: rank {rank} and rotary {rotary} have to be even")
        if stride < 1:
            raise ValueError(f"{name}: stride is at least 1 token, not {stride}")
        self.stride, self.rotary, self.dropout = stride, rotary, dropout
        self.scale = (self.head_width + rotary) ** -0.5
        self.query = nn.Linear(width, heads * (self.head_width + rotary))
        self.latent = nn.Linear(width, self.rank + rotary)
        self.norm = nn.LayerNorm(self.rank)
        # Parameters, not layers: a step reads them the other way round, which a layer that is
        # packed or quantized for inference would not allow.
        self.key = nn.Parameter(torch.empty(heads, self.head_width, self.rank))
        self.value = nn.Parameter(torch.empty(heads, self.head_width, self.rank))
        for parameter in (self.key, self.value):
            nn.init.uniform_(parameter, -(self.rank**-0.5), self.rank**-0.5)
        self.output = nn.Linear(width, width)
        if stride > 1:
            units = max(1, self.rank // 4)
            self.merge_position = nn.Linear(self.rank, units)
            self.merge_latent = nn.Linear(self.rank, units)
            # Not a buffer: it grows with need, and DDP expects buffers of one size everywhere.
            self._positions = sinusoids(64, self.rank)

    def forward(self, x: Tensor) -> Tensor:
        n, u, _ = x.shape
        depth = torch.arange(u, device=x.device)
        q, latent, turned = self._read(x, depth, u)
        if self.stride == 1:
            return self._expanded(q, latent, turned, None)
        groups = pad(latent, (0, 0, 0, -u % self.stride)).unflatten(1, (-1, self.stride))
        merged = groups.cumsum(2).flatten(1, 2)[:, :u]  # (N, U, r)
        return self._expanded(q, merged, turned, self._visible(depth).tril()[None, None])

    def tree(self, x: Tensor, path: Tensor, depth: Tensor) -> Tensor:
        q, latent, turned = self._read(x, depth, int(depth.max()) + 1)
        if self.stride > 1:
            group = depth // self.stride
            together = path & (group[:, None] == group[..., None])
            latent = together.to(latent.dtype) @ latent
            path = path & self._visible(depth)
        return self._expanded(q, latent, turned, path[:, None])

    def empty(self, batch: int, like: Tensor) -> Cache:
        return (like.new_empty(batch, 0, self.rank + self.rotary),)

    def step(self, x: Tensor, past: Cache, growth: Growth) -> tuple[Tensor, Cache]:
        b, k, _ = x.shape
        depth = torch.full((1,), growth.depth, device=x.device)
        q, latent, turned = self._read(x, depth, growth.depth + 1)
        if growth.parent is not None:
            at = growth.parent[..., None].expand(-1, -1, self.rank)
            latent = latent + past[0][..., : self.rank].gather(1, at)
        cache = torch.cat([past[0], torch.cat([latent, turned], -1)], 1)  # (B, M + K, r + R)
        # A head's key is a product of the latent; so its query goes over to the latent instead,
        # and all heads are queries of one attention over the latents.
        plain, turned = q.split([self.head_width, self.rotary], -1)  # (B, K, H, .)
        plain = torch.einsum("bkhd,hdr->bhkr", plain, self.key)
        q = torch.cat([plain, turned.transpose(1, 2)], -1).flatten(1, 2)[:, None]
        y = scaled_dot_product_attention(
            q,
            cache[:, None],
            cache[:, None, :, : self.rank],
            attn_mask=growth.path[:, None].repeat(1, 1, self.heads, 1),
            scale=self.scale,
        ).view(b, self.heads, k, self.rank)
        y = torch.einsum("bhkr,hdr->bkhd", y, self.value)
        return self.output(y.flatten(2)), (cache,)

    def _read(self, x: Tensor, depth: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens (N, U, D) at positions `depth`, (U,), (1,) or (N, U), below `longest`.

        To queries (N, U, H, Dh + R), latents (N, U, r), weighted for merging, and rotated channels.
        """
        q = self.query(x).unflatten(2, (self.heads, -1))
        latent, turned = self.latent(x).split([self.rank, self.rotary], 2)
        latent = self.norm(latent)
        if self.rotary:
            plain, q_turned = q.split([self.head_width, self.rotary], 3)
            q = torch.cat([plain, turn(q_turned, depth[..., None])], 3)
            turned = turn(turned, depth)
        if self.stride > 1:
            self._positions = grown(self._positions, longest, x.device)
            group = self._positions[depth // self.stride].to(latent.dtype)
            place = self.merge_position(group)  # (..., r / 4)
            weight = (place * self.merge_latent(latent)).sum(-1, keepdim=True).sigmoid()
            latent = weight * latent
        return q, latent, turned

    def _visible(self, depth: Tensor) -> Tensor:
        """Return the stride-aware mask, not causal: (U,) -> (U, U), (B, M) -> (B, M, M)."""
        last = (depth + 1) % self.stride == 0
        own = torch.eye(depth.size(-1), dtype=torch.bool, device=depth.device)
        return last[..., None, :] | own

    def _expanded(self, q: Tensor, latent: Tensor, turned: Tensor, mask: Tensor | None) -> Tensor:
        """Attend with the keys and values of each head; causal without a mask."""
        k, v = (linear(latent, up.flatten(0, 1)) for up in (self.key, self.value))
        k, v = k.unflatten(2, (self.heads, -1)), v.unflatten(2, (self.heads, -1))
        if self.rotary:
            k = torch.cat([k, turned[:, :, None].expand(-1, -1, self.heads, -1)], 3)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        y = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=self.scale
        )
        return self.output(y.transpose(1, 2).flatten(2))


def turn(x: Tensor, at: Tensor) -> Tensor:
    """Rotate channels (..., R) by positions, broadcast to (...), as `rotary.rotate` does."""
    half = x.size(-1) // 2
    rate = 10000.0 ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angle = at[..., None] * rate
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
