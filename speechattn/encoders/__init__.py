"""Encoders: features (B, T, F) to hidden states (B, T', D).

Legend: B utterances, T frames, T' frames after subsampling, c frames of a chunk, F features,
D width, C channels, K kernel width, H heads, V units, g frames a group, s stride.
"""

from speechattn.encoders.base import Encoder, EncoderOutput
from speechattn.encoders.branchformer import BranchformerEncoder
from speechattn.encoders.conformer import ConformerEncoder
from speechattn.encoders.e_branchformer import EBranchformerEncoder
from speechattn.encoders.efficient_conformer import EfficientConformerEncoder
from speechattn.encoders.frame_reducer import FrameReducer
from speechattn.encoders.streaming import EncoderState
from speechattn.encoders.subsampling import Subsampling

__all__ = [
    "BranchformerEncoder",
    "ConformerEncoder",
    "EBranchformerEncoder",
    "EfficientConformerEncoder",
    "Encoder",
    "EncoderOutput",
    "EncoderState",
    "FrameReducer",
    "Subsampling",
]
