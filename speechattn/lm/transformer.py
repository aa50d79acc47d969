"""A Transformer language model over the model's units, for shallow fusion and rescoring.

Legend: K hypotheses of an utterance, N = B * K, L layers, H heads; else as in `speechattn.lm`.

The arithmetic of ESPnet's `espnet2.lm.transformer_lm.TransformerLM`: pre-norm blocks of causal
self-attention after a linear layer of the embedding, and by default no positions, which a causal
mask implies (Irie et al., "Language Modeling with Deep Transformers", 1905.04226).
"""

import math
from typing import Literal

from torch import Tensor, nn

from speechattn.attention.decoder_base import Cache, Growth, TokenAttentionFactory
from speechattn.attention.sinusoids import grown, sinusoids
from speechattn.attention.token_softmax import SoftmaxTokenAttention
from speechattn.decoders.scoring import next_tokens, sequence_log_probs
from speechattn.decoders.transformer import NORM_EPS
from speechattn.decoders.tree import TokenTree
from speechattn.masks import padding_mask


class LmLayer(nn.Module):
    """Self-attention and feed-forward, each normalised before it is added."""

    def __init__(
        self,
        width: int,
        attention_heads: int,
        linear_units: int,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        self_attention: TokenAttentionFactory = SoftmaxTokenAttention,
    ):
        super().__init__()
        self.self_attention = self_attention(width, attention_heads, attention_dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, linear_units),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(linear_units, width),
        )
        self.norm_self = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_feed_forward = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, U, D) to (B, U, D); token u attends to tokens 0..u."""
        return self.feed(x + self.dropout(self.self_attention(self.norm_self(x))))

    def feed(self, x: Tensor) -> Tensor:
        """Apply the feed-forward sub-layer, (..., D) -> (..., D)."""
        return x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))

    def step(self, x: Tensor, past: Cache, growth: Growth) -> tuple[Tensor, Cache]:
        """Feed one token of each hypothesis, (B, K, D) -> (B, K, D) and the new cache."""
        y, past = self.self_attention.step(self.norm_self(x), past, growth)
        return self.feed(x + y), past


class TransformerLm(nn.Module):
    """Predicts token u + 1 from tokens 0..u.

    Args:
        vocab_size: V, with blank and <sos/eos> among them.
        width: D, even and a multiple of `attention_heads`.
        attention_heads: H.
        linear_units: width inside the feed-forward.
        num_blocks: L.
        dropout: of embeddings, of sub-layers' outputs and inside the feed-forward, in [0, 1).
        attention_dropout: of attention weights, in [0, 1).
        embed_size: width of the embedding, which a linear layer widens to D.
        positions: `none`, or `sinusoidal` ones, added after the linear layer.
        self_attention: makes the mechanism over tokens, any `TokenAttention`; by default
            `SoftmaxTokenAttention`.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int = 512,
        attention_heads: int = 8,
        linear_units: int = 2048,
        *,
        num_blocks: int = 6,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        embed_size: int = 128,
        positions: Literal["none", "sinusoidal"] = "none",
        self_attention: TokenAttentionFactory | None = None,
    ):
        super().__init__()
        if attention_heads < 1 or width % attention_heads or width % 2:
            wanted = f"even and a multiple of attention_heads {attention_heads}"
            raise ValueError(f"width {width} has to be {wanted}")
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}; a language model needs at least one")
        if not 0.0 <= attention_dropout < 1.0:
            raise ValueError(f"attention_dropout is {attention_dropout}; it has to be in [0, 1)")
        if positions not in ("none", "sinusoidal"):
            raise ValueError(f"positions is {positions!r}; it has to be none or sinusoidal")
        self.vocab_size, self.width, self.positions = vocab_size, width, positions
        self.embed = nn.Embedding(vocab_size, embed_size)
        self.input = nn.Sequential(
            nn.Linear(embed_size, width), nn.LayerNorm(width), nn.Dropout(dropout), nn.ReLU()
        )
        self.position_dropout = nn.Dropout(dropout if positions == "sinusoidal" else 0.0)
        mechanism = self_attention or SoftmaxTokenAttention
        self.layers = nn.ModuleList(
            LmLayer(width, attention_heads, linear_units, dropout, attention_dropout, mechanism)
            for _ in range(num_blocks)
        )
        self.after_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.output = nn.Linear(width, vocab_size)
        # Not a buffer: it grows with need, and DDP expects buffers of one size on all processes.
        self._positions = sinusoids(256, width)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits of the next token after each token.

        Args:
            tokens: (B, U) int64, starting with <sos>; any value beyond a sequence's length.
            lengths: (B,) int64.

        Returns:
            (B, U, V); undefined beyond a sequence's length.
        """
        return self.output(self.hidden(tokens, lengths))

    def hidden(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the input of the output layer, (B, U, D)."""
        # Padding may be -1, which has no embedding.
        x = self._embed(tokens.masked_fill(~padding_mask(lengths, tokens.size(1)), 0))
        for layer in self.layers:
            x = layer(x)
        return self.after_norm(x)

    def init_state(self, batch: int) -> TokenTree:
        """Return the state before <sos>, of one hypothesis for each of B utterances."""
        like = self.embed.weight
        cache = tuple(layer.self_attention.empty(batch, like) for layer in self.layers)
        return TokenTree.root(cache, self.layers[0].self_attention.stride)

    def step(self, token: Tensor, tree: TokenTree) -> tuple[Tensor, TokenTree]:
        """Feed one token (N,) int64, <sos> first, to every hypothesis of a tree of N.

        Returns:
            Log-probabilities of the next token (N, V), and the tree with `token` in it.
        """
        x = self._embed(token.view(tree.utterances, -1), position=tree.depth)  # (B, K, D)
        growth, cache = tree.growth(), []
        for layer, past in zip(self.layers, tree.cache, strict=True):
            x, past = layer.step(x, past, growth)
            cache.append(past)
        log_probs = self.output(self.after_norm(x.flatten(0, 1))).log_softmax(-1)  # (N, V)
        return log_probs, tree.grown(tuple(cache), growth)

    def _embed(self, tokens: Tensor, position: int | None = None) -> Tensor:
        """Embed tokens (B, U) at positions 0..U - 1, or all of them at one position."""
        x = self.input(self.embed(tokens))
        if self.positions == "none":
            return x
        start, stop = (0, tokens.size(1)) if position is None else (position, position + 1)
        self._positions = grown(self._positions, stop, x.device)
        x = x * math.sqrt(self.width) + self._positions[start:stop].to(x.dtype)
        return self.position_dropout(x)


def sequence_scores(lm: TransformerLm, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Score whole sequences, <eos> included, in one pass.

    Args:
        lm: in evaluation mode.
        tokens: (N, U) int64, starting with <sos>, without <eos>; any value beyond a length.
        lengths: (N,) int64, <sos> counted, each at least 1.

    Returns:
        (N,) log-probabilities, float64, natural logs.
    """
    targets = next_tokens(tokens, lengths, lm.vocab_size - 1)
    return sequence_log_probs(lm.hidden(tokens, lengths), targets, lengths, lm.output)
