"""Decoders: networks that predict the next token from the tokens so far and the encoder's output.

Legend: B utterances, N sequences (a multiple of B; B in training), U tokens, T memory frames,
V units, L layers, H heads, D width, Dh = D / H.
"""

from speechattn.decoders.base import Decoder, DecoderState
from speechattn.decoders.bidirectional import BidirectionalDecoder, reverse_tokens
from speechattn.decoders.joiner import Joiner
from speechattn.decoders.predictor import LstmPredictor, Predictor, StatelessPredictor
from speechattn.decoders.transducer import Transducer
from speechattn.decoders.transformer import TransformerDecoder

__all__ = [
    "BidirectionalDecoder",
    "Decoder",
    "DecoderState",
    "Joiner",
    "LstmPredictor",
    "Predictor",
    "StatelessPredictor",
    "Transducer",
    "TransformerDecoder",
    "reverse_tokens",
]
