"""Two Transformer decoders over one memory: one reads left to right, one right to left.

Wu et al., "U2++: Unified Two-pass Bidirectional End-to-end Model for Speech Recognition"
(2106.05642), also the decoder of the CNVSRC 2024 baseline. The search goes left to right; its
hypotheses are then scored in the other direction too (`speechattn.decoding.rescoring`).
"""

import torch
from torch import Tensor

from speechattn.attention.cross import CrossAttentionFactory
from speechattn.attention.decoder_base import TokenAttentionFactory
from speechattn.decoders.base import Decoder, DecoderState
from speechattn.decoders.transformer import TransformerDecoder


def reverse_tokens(tokens: Tensor, lengths: Tensor) -> Tensor:
    """Reverse each sequence of tokens (N, U), with lengths (N,) int64, at most U.

    What stands beyond a length stays where it is.
    """
    at = torch.arange(tokens.size(1), device=tokens.device).expand_as(tokens)  # (N, U)
    last = lengths[:, None] - 1
    return tokens.gather(1, torch.where(at <= last, last - at, at))


class BidirectionalDecoder(Decoder):
    """A left-to-right decoder and a right-to-left one, each with its own depth.

    As a `Decoder` it is its left-to-right half; `reverse` is the other half. Its weights are those
    of the two `TransformerDecoder`s, named `left.` and `right.`; `right.embed` is not there when
    the embedding is shared.

    Args:
        vocab_size: V, with blank and <sos/eos> among them.
        memory_size: width of the memory.
        width: D, even and a multiple of `attention_heads`.
        attention_heads: H.
        linear_units: width inside the feed-forward.
        num_blocks: layers of the left-to-right decoder.
        reverse_blocks: layers of the right-to-left decoder.
        share_embedding: one embedding of tokens for both; WeNet and the CNVSRC 2024 baseline have
            two.
        dropout: of embeddings, of sub-layers' outputs and inside the feed-forward, in [0, 1).
        attention_dropout: of attention weights, in [0, 1).
        self_attention: makes the mechanism over tokens of both, as in `TransformerDecoder`.
        cross_attention: makes the mechanism over the memory of both, likewise.
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
        reverse_blocks: int = 3,
        share_embedding: bool = False,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        self_attention: TokenAttentionFactory | None = None,
        cross_attention: CrossAttentionFactory | None = None,
    ):
        super().__init__()
        if reverse_blocks < 1:
            raise ValueError(
                f"reverse_blocks is {reverse_blocks}; a decoder without a right-to-left half is a "
                "TransformerDecoder"
            )
        self.vocab_size, self.memory_size, self.width = vocab_size, memory_size, width
        self.left, self.right = (
            TransformerDecoder(
                vocab_size,
                memory_size,
                width,
                attention_heads,
                linear_units=linear_units,
                num_blocks=blocks,
                dropout=dropout,
                attention_dropout=attention_dropout,
                self_attention=self_attention,
                cross_attention=cross_attention,
            )
            for blocks in (num_blocks, reverse_blocks)
        )
        if share_embedding:
            # A plain attribute rather than a module: the weights are listed and saved once.
            del self.right.embed
            self.right.__dict__["embed"] = self.left.embed

    def forward(
        self, tokens: Tensor, token_lengths: Tensor, memory: Tensor, memory_lengths: Tensor
    ) -> Tensor:
        return self.left(tokens, token_lengths, memory, memory_lengths)

    def reverse(
        self, tokens: Tensor, token_lengths: Tensor, memory: Tensor, memory_lengths: Tensor
    ) -> Tensor:
        """Compute the logits of the token before, going right to left.

        The arguments are those of `forward`: tokens in reading order behind <sos>. What is fed is
        <sos> and then the tokens back to front, each sequence by its own length.

        Returns:
            (N, U, V): at u the prediction of the (u + 1)-th token from the end, and of <eos> at
            the last u of a sequence. What stands beyond a sequence's length means nothing.
        """
        turned = reverse_tokens(tokens[:, 1:], token_lengths - 1)
        turned = torch.cat([tokens[:, :1], turned], 1)
        return self.right(turned, token_lengths, memory, memory_lengths)

    def predict_tree(
        self, tokens: Tensor, depth: Tensor, path: Tensor, memory: Tensor, memory_lengths: Tensor
    ) -> Tensor:
        return self.left.predict_tree(tokens, depth, path, memory, memory_lengths)

    def reverse_tree(
        self, tokens: Tensor, depth: Tensor, path: Tensor, memory: Tensor, memory_lengths: Tensor
    ) -> Tensor:
        """Run `predict_tree` on sequences that are fed back to front."""
        return self.right.predict_tree(tokens, depth, path, memory, memory_lengths)

    def cross_attention(
        self, tokens: Tensor, token_lengths: Tensor, memory: Tensor, memory_lengths: Tensor
    ) -> Tensor:
        return self.left.cross_attention(tokens, token_lengths, memory, memory_lengths)

    def init_state(self, memory: Tensor, memory_lengths: Tensor) -> DecoderState:
        return self.left.init_state(memory, memory_lengths)

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        return self.left.step(token, state)
