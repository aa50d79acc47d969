"""The Transformer decoder: causal self-attention over tokens, cross-attention over the memory.

Legend: B utterances, N hypotheses, U tokens, T memory frames, V units, L layers, H heads, D width,
Dh = D / H.

Vaswani et al., "Attention Is All You Need" (1706.03762), pre-norm; the arithmetic of ESPnet's
`espnet2.asr.decoder.transformer_decoder.TransformerDecoder`.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from speechattn.decoders.base import Decoder, DecoderState
from speechattn.decoders.tree import KeyValue, TokenTree
from speechattn.masks import padding_mask

NORM_EPS = 1e-12  # ESPnet's; with torch's default of 1e-5 its checkpoints give other numbers


def sinusoids(length: int, width: int) -> Tensor:
    """Absolute positions of 1706.03762: sines in the even columns, cosines in the odd ones.

    Returns:
        (length, width) float32.
    """
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(1e4) / width))
    table = torch.empty(length, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)
    return table


def grown(table: Tensor, length: int, device: torch.device) -> Tensor:
    """A table of `sinusoids` on a device, twice as long as asked for where it was too short."""
    if length <= table.size(0) and table.device == device:
        return table
    with torch.inference_mode(False):  # kept, so training has to be able to use it
        return sinusoids(max(2 * length, table.size(0)), table.size(1)).to(device)


class SelfAttention(nn.Module):
    """Causal multi-head self-attention; queries, keys and values in one product."""

    def __init__(self, width: int, attention_heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = attention_heads
        self.dropout = dropout
        self.project = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, u, d = x.shape
        qkv = self.project(x).view(n, u, 3, self.heads, d // self.heads)
        return qkv.unbind(2)  # each (N, U, H, Dh)

    def forward(self, x: Tensor) -> Tensor:
        """(N, U, D) -> (N, U, D); token u sees tokens 0..u."""
        q, k, v = (part.transpose(1, 2) for part in self._heads(x))
        dropout = self.dropout if self.training else 0.0
        y = scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.output(y.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, past: KeyValue, path: Tensor) -> tuple[Tensor, KeyValue]:
        """One token of each hypothesis over the nodes of their tree.

        Args:
            x: (B, K, D).
            past: keys and values of M nodes, each (B, M, H, Dh).
            path: (B, 1, K, M + K) bool, the nodes of each hypothesis, the last K of them new.

        Returns:
            (B, K, D), and keys and values of M + K nodes.
        """
        q, k, v = self._heads(x)
        k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)  # (B, M + K, H, Dh)
        y = scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=path
        )
        return self.output(y.transpose(1, 2).flatten(2)), (k, v)


class CrossAttention(nn.Module):
    """Multi-head attention of tokens over a memory whose keys and values are projected once."""

    def __init__(self, width: int, memory_size: int, attention_heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = attention_heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(memory_size, 2 * width)
        self.output = nn.Linear(width, width)

    def keys(self, memory: Tensor) -> KeyValue:
        """(B, T, memory_size) -> keys and values, each (B, H, T, Dh)."""
        b, t, _ = memory.shape
        kv = self.key_value(memory).view(b, t, 2, self.heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def queries(self, x: Tensor) -> Tensor:
        """(B, Q, D) -> (B, H, Q, Dh)."""
        b, q, d = x.shape
        return self.query(x).view(b, q, self.heads, d // self.heads).transpose(1, 2)

    def forward(self, x: Tensor, key_value: KeyValue, mask: Tensor | None) -> Tensor:
        """(B, Q, D) over keys and values (B, H, T, Dh) -> (B, Q, D)."""
        dropout = self.dropout if self.training else 0.0
        y = scaled_dot_product_attention(
            self.queries(x), *key_value, attn_mask=mask, dropout_p=dropout
        )
        return self.output(y.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, key_value: KeyValue, mask: Tensor | None) -> Tensor:
        """(B, Q, D) -> the attention weights (B, H, Q, T), each row summing to 1."""
        q, k = self.queries(x), key_value[0]
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return scores.softmax(-1)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normalised before it is added."""

    def __init__(
        self,
        width: int,
        memory_size: int,
        attention_heads: int,
        linear_units: int,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        self.self_attention = SelfAttention(width, attention_heads, attention_dropout)
        self.cross_attention = CrossAttention(
            width, memory_size, attention_heads, attention_dropout
        )
        self.feed_forward = nn.Sequential(
            nn.Linear(width, linear_units),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(linear_units, width),
        )
        self.norm_self = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_cross = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_feed_forward = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, key_value: KeyValue, mask: Tensor | None) -> Tensor:
        """(N, U, D) and keys and values (B, H, T, Dh) -> (N, U, D)."""
        return self.feed(self.listen(self.attend(x), key_value, mask))

    def attend(self, x: Tensor) -> Tensor:
        """The self-attention sub-layer, (N, U, D) -> (N, U, D)."""
        return x + self.dropout(self.self_attention(self.norm_self(x)))

    def listen(self, x: Tensor, key_value: KeyValue, mask: Tensor | None) -> Tensor:
        """The cross-attention sub-layer, (N, U, D) -> (N, U, D)."""
        # The sequences of an utterance are the queries of one attention over its memory, which
        # is read once for all of them.
        grouped = x.reshape(key_value[0].size(0), -1, x.size(-1))  # (B, N / B * U, D)
        y = self.dropout(self.cross_attention(self.norm_cross(grouped), key_value, mask))
        return x + y.view_as(x)

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward sub-layer, (..., D) -> (..., D)."""
        return x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))

    def step(
        self, x: Tensor, past: KeyValue, path: Tensor, key_value: KeyValue, mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """One token of each hypothesis, (B, K, D) -> (B, K, D) and the caches with it."""
        y, past = self.self_attention.step(self.norm_self(x), past, path)
        return self.feed(self.listen(x + y, key_value, mask)), past


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
    """

    def __init__(
        self,
        vocab_size: int,
        memory_size: int,
        width: int = 256,
        attention_heads: int = 4,
        linear_units: int = 1024,
        num_blocks: int = 3,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
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
        self.vocab_size = vocab_size
        self.memory_size = memory_size
        self.width = width
        self.embed = nn.Embedding(vocab_size, width)
        # With unit variance after the scaling tokens and positions start out equally loud.
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        self.embed_dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(
                width, memory_size, attention_heads, linear_units, dropout, attention_dropout
            )
            for _ in range(num_blocks)
        )
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
        heads = self.layers[0].self_attention.heads
        none = x.new_empty(len(x), 0, heads, self.width // heads)  # all nodes are new
        for layer in self.layers:
            key_value = layer.cross_attention.keys(memory)
            x, _ = layer.step(x, (none, none), path[:, None], key_value, mask)
        return self.output(self.after_norm(x))

    def cross_attention(
        self, tokens: Tensor, token_lengths: Tensor, memory: Tensor, memory_lengths: Tensor
    ) -> Tensor:
        x = self._embed_padded(tokens, token_lengths)
        mask = _memory_mask(memory, memory_lengths)
        weights = []
        for layer in self.layers:
            key_value = layer.cross_attention.keys(memory)
            query = layer.norm_cross(layer.attend(x))
            weights.append(layer.cross_attention.weights(query, key_value, mask))
            x = layer(x, key_value, mask)
        return torch.stack(weights)

    def init_state(self, memory: Tensor, memory_lengths: Tensor) -> DecoderState:
        cross = tuple(layer.cross_attention.keys(memory) for layer in self.layers)
        # Contiguous once here, or every step would pay for the strides.
        cross = tuple((k.contiguous(), v.contiguous()) for k, v in cross)
        keys = cross[0][0]
        tree = TokenTree.root(len(cross), len(keys), keys.size(1), keys, keys.size(3))
        return DecoderState(cross, _memory_mask(memory, memory_lengths), tree)

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        tree = state.tree
        x = self._embed(token.view(state.utterances, -1), tree.depth)  # (B, K, D)
        path, cache = tree.grown_path(), []
        for layer, past, key_value in zip(self.layers, tree.cache, state.memory, strict=True):
            x, past = layer.step(x, past, path[:, None], key_value, state.memory_mask)
            cache.append(past)
        log_probs = self.output(self.after_norm(x.flatten(0, 1))).log_softmax(-1)  # (N, V)
        return log_probs, replace(state, tree=tree.grown(tuple(cache), path))

    def _embed_padded(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        # Padding may be -1 as the loss wants it, which no embedding has.
        return self._embed(tokens.masked_fill(~padding_mask(lengths, tokens.size(1)), 0))

    def _embed(self, tokens: Tensor, depth: Tensor | int | None = None) -> Tensor:
        """Of tokens (N, U): one after the other, or with so many before each or before all."""
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
