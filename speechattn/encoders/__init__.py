"""Encoders: features (B, T, F) to hidden states (B, T', D).

Legend: B utterances, T frames, T' frames after subsampling, F features, D width, C channels,
K kernel width.
"""

from speechattn.encoders.base import Encoder
from speechattn.encoders.conformer import ConformerEncoder
from speechattn.encoders.e_branchformer import EBranchformerEncoder
from speechattn.encoders.subsampling import Subsampling

__all__ = ["ConformerEncoder", "EBranchformerEncoder", "Encoder", "Subsampling"]
