"""Decoders: networks that predict the next token from the tokens so far and the encoder's output.

Legend: B utterances, N hypotheses (a multiple of B while searching), U tokens, T memory frames,
V units, L layers, H heads, D width, Dh = D / H.
"""

from speechattn.decoders.espnet import from_espnet
from speechattn.decoders.transformer import DecoderState, TransformerDecoder

__all__ = ["DecoderState", "TransformerDecoder", "from_espnet"]
