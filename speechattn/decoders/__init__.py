"""Decoders: networks that predict the next token from the tokens so far and the encoder's output.

Legend: B utterances, K hypotheses of each, N = B K sequences or hypotheses (B in training),
U tokens, M nodes of an utterance's token tree, T memory frames, V units, L layers, H heads,
D width.
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
