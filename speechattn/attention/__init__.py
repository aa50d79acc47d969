"""Attention mechanisms, one a file.

Legend: B utterances, T frames, H heads, D width, Dh = D / H width of a head.
"""

from speechattn.attention.base import AttentionFactory, AttentionState, SelfAttention
from speechattn.attention.cache import AttentionCache
from speechattn.attention.positions import RelativePositions, relative_positions
from speechattn.attention.relative import RelativeSelfAttention
from speechattn.attention.rotary import RotarySelfAttention
from speechattn.attention.softmax import SoftmaxSelfAttention

__all__ = [
    "AttentionCache",
    "AttentionFactory",
    "AttentionState",
    "RelativePositions",
    "RelativeSelfAttention",
    "RotarySelfAttention",
    "SelfAttention",
    "SoftmaxSelfAttention",
    "relative_positions",
]
