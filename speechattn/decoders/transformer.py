"""The Transformer decoder: causal self-attention over tokens, cross-attention over the memory.

Vaswani et al., "Attention Is All You Need" (1706.03762), pre-norm; the arithmetic of ESPnet's
`espnet2.asr.decoder.transformer_decoder.TransformerDecoder`.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from speechattn.attention.cross import (
    CrossAttention,
    CrossAttentionFactory,
    CrossState,
    Keys,
    SoftmaxCrossAttention,
)
from speechattn.attention.decoder_base import Cache, Growth, TokenAttention, TokenAttentionFactory
from speechattn.attention.sinusoids import grown, sinusoids
from speechattn.attention.token_softmax import SoftmaxTokenAttention
from speechattn.decoders.base import Decoder, DecoderState
from speechattn.decoders.tree import TokenTree
from speechattn.masks import padding_mask

NORM_EPS = 1e-12  # ESPnet's; with torch's default of 1e-5 its checkpoints give other numbers


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normalised before it is added."""

    def __init__(
        self,
        attention: TokenAttention,
        cross: CrossAttention,
        width: int,
        units: int,
        dropout: float,
    ):
        super().__init__()
        self.self_attention, self.cross_attention = attention, cross
        up, down = nn.Linear(width, units), nn.Linear(units, width)
        self.feed_forward = nn.Sequential(up, nn.ReLU(), nn.Dropout(dropout), down)
        self.norm_self = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_cross = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_feed_forward = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keys: Keys, mask: Tensor | None) -> Tensor:
        """Map x (N, U, D) to (N, U, D), given `cross_attention.keys` of the memory."""
        x = self.attend(x)
        y = self.cross_attention(self.norm_cross(x), keys, mask)
        return self.feed(x + self.dropout(y))

    def attend(self, x: Tensor) -> Tensor:
        """Run the self-attention sub-layer, (N, U, D) to (N, U, D)."""
        return x + self.dropout(self.self_attention(self.norm_self(x)))

    def feed(self, x: Tensor) -> Tensor:
        """Run the feed-forward sub-layer, (..., D) to (..., D)."""
        return x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))

    def tree(
        self, x: Tensor, path: Tensor, depth: Tensor, keys: Keys, mask: Tensor | None
    ) -> Tensor:
        """Run `forward` on the nodes of a tree, (B, M, D) to (B, M, D)."""
        x = x + self.dropout(self.self_attention.tree(self.norm_self(x), path, depth))
        y = self.cross_attention.tree(self.norm_cross(x), path, depth, keys, mask)
        return self.feed(x + self.dropout(y))

    def step(
        self,
        x: Tensor,
        past: Cache,
        growth: Growth,
        keys: Keys,
        mask: Tensor | None,
        cross_state: CrossState = (),
    ) -> tuple[Tensor, Cache, CrossState]:
        """Run one token of each hypothesis.

        Args:
            x: (B, K, D).
            past: the caches of self-attention.
            growth: where the tokens go.
            keys, mask: of the memory, as in `forward`.
            cross_state: of each hypothesis's cross-attention.

        Returns:
            (B, K, D), the caches with these tokens, and the new state of cross-attention.
        """
        y, past = self.self_attention.step(self.norm_self(x), past, growth)
        x = x + y
        y, cross_state = self.cross_attention.step(self.norm_cross(x), keys, mask, cross_state)
        return self.feed(x + y), past, cross_state


class TransformerDecoder(Decoder):
    """Predicts token u + 1 from tokens 0..u and the memory.

    Equal to ESPnet's TransformerDecoder: embedding * sqrt(D) + sinusoidal positions, pre-norm
    blocks with ReLU, a last norm and the output layer.

    Args:
        vocab_size: V, with blank and <sos/eos> among them.
        memory_size: width of the memory.
        width: D, even and a multiple of `attention_heads`.
        attention_heads: H.
        linear_units: width inside the feed-forward.
        num_blocks: L.
        dropout: of embeddings, of sub-layers' outputs and inside the feed-forward, in [0, 1).
        attention_dropout: of attention weights, in [0, 1).
        self_attention: makes the mechanism over tokens, any `TokenAttention`; by default
            `SoftmaxTokenAttention`, which is ESPnet's.
        cross_attention: makes the mechanism over the memory, any `CrossAttention`; by default
            `SoftmaxCrossAttention`, which is ESPnet's.
    """

    def __init__(
        self,
        vocab_size: int,
        memory_size: int,
        width: int = 256,
        attention_heads: int = 4,
        *,
        linear_units: int = 1024,
        num_blocks: int = 3,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        self_attention: TokenAttentionFactory | None = None,
        cross_attention: CrossAttentionFactory | None = None,
    ):
        super().__init__()
        if attention_heads < 1 or width % attention_heads or width % 2:
            raise ValueError(
                f"width {width} has to be even and a multiple of attention_heads {attention_heads}"
            )
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}; a decoder needs at least one")
        if not 0.0 <= attention_dropout < 1.0:
            raise ValueError(f"attention_dropout is {attention_dropout}; it has to be in [0, 1)")
        self.vocab_size, self.memory_size, self.width = vocab_size, memory_size, width
        self.embed = nn.Embedding(vocab_size, width)
        # With unit variance after the scaling tokens and positions start out with equal power.
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        self.embed_dropout = nn.Dropout(dropout)
        heads = attention_heads, attention_dropout
        own, cross = (
            self_attention or SoftmaxTokenAttention,
            cross_attention or SoftmaxCrossAttention,
        )
        layers = []
        for _ in range(num_blocks):
            attentions = own(width, *heads), cross(width, memory_size, *heads)
            layers.append(DecoderLayer(*attentions, width, linear_units, dropout))
        self.layers = nn.ModuleList(layers)
        self.after_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.output = nn.Linear(width, vocab_size)
        # Not a buffer: it grows with need, and DDP expects buffers of one size on all processes.
        self._positions = sinusoids(256, width)

    def forward(
        self, tokens: Tensor, token_lengths: Tensor, memory: Tensor, memory_lengths: Tensor
    ) -> Tensor:
        x = self._embed_padded(tokens, token_lengths)
        mask = _memory_mask(memory, memory_lengths)
        for layer in self.layers:
            x = layer(x, layer.cross_attention.keys(memory), mask)
        return self.output(self.after_norm(x))

    def predict_tree(
        self, tokens: Tensor, depth: Tensor, path: Tensor, memory: Tensor, memory_lengths: Tensor
    ) -> Tensor:
        x = self._embed(tokens, depth)  # (B, M, D)
        mask = _memory_mask(memory, memory_lengths)
        for layer in self.layers:
            x = layer.tree(x, path, depth, layer.cross_attention.keys(memory), mask)
        return self.output(self.after_norm(x))

    def cross_attention(
        self, tokens: Tensor, token_lengths: Tensor, memory: Tensor, memory_lengths: Tensor
    ) -> Tensor:
        x = self._embed_padded(tokens, token_lengths)
        mask = _memory_mask(memory, memory_lengths)
        weights = []
        for layer in self.layers:
            keys = layer.cross_attention.keys(memory)
            query = layer.norm_cross(layer.attend(x))
            weights.append(layer.cross_attention.weights(query, keys, mask))
            x = layer(x, keys, mask)
        return torch.stack(weights)

    def init_state(self, memory: Tensor, memory_lengths: Tensor) -> DecoderState:
        cross = tuple(layer.cross_attention.keys(memory) for layer in self.layers)
        # Contiguous once here, or every step would pay for the strides.
        cross = tuple(tuple(x.contiguous() for x in keys) for keys in cross)
        like, b = cross[0][0], len(memory)
        cache = tuple(layer.self_attention.empty(b, like) for layer in self.layers)
        pairs = zip(self.layers, cross, strict=True)
        states = tuple(layer.cross_attention.start(keys) for layer, keys in pairs)
        tree = TokenTree.root(cache, self.layers[0].self_attention.stride)
        return DecoderState(cross, _memory_mask(memory, memory_lengths), tree, states)

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        tree = state.tree
        x = self._embed(token.view(state.utterances, -1), tree.depth)  # (B, K, D)
        growth, mask, cache, states = tree.growth(), state.memory_mask, [], []
        kept = zip(self.layers, tree.cache, state.memory, state.cross_states, strict=True)
        for layer, past, keys, last in kept:
            x, past, last = layer.step(x, past, growth, keys, mask, last)
            cache.append(past)
            states.append(last)
        log_probs = self.output(self.after_norm(x.flatten(0, 1))).log_softmax(-1)  # (N, V)
        tree = tree.grown(tuple(cache), growth)
        return log_probs, replace(state, tree=tree, cross_states=tuple(states))

    def _embed_padded(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        # Padding may be -1 as the loss wants it, which no embedding has.
        return self._embed(tokens.masked_fill(~padding_mask(lengths, tokens.size(1)), 0))

    def _embed(self, tokens: Tensor, depth: Tensor | int | None = None) -> Tensor:
        """Embed tokens (N, U), at positions 0 to U - 1, or at `depth`, of each or of all."""
        if depth is None:
            at, longest = slice(0, tokens.size(1)), tokens.size(1)
        elif isinstance(depth, int):
            at, longest = slice(depth, depth + 1), depth + 1
        else:
            at, longest = depth, int(depth.max()) + 1
        x = self.embed(tokens) * math.sqrt(self.width)
        self._positions = grown(self._positions, longest, x.device)
        x = x + self._positions[at].to(x.dtype)
        return self.embed_dropout(x)


def _memory_mask(memory: Tensor, lengths: Tensor) -> Tensor | None:
    mask = padding_mask(lengths, memory.size(1))  # (B, T)
    return None if bool(mask.all()) else mask[:, None, None]
