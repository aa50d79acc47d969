"""Attention mechanisms, one a file.

Legend: B utterances, T frames, H heads, D width, Dh = D / H width of a head.
"""

from speechattn.attention.cache import AttentionCache
from speechattn.attention.positions import RelativePositions, relative_positions
from speechattn.attention.relative import RelativeSelfAttention
from speechattn.attention.rotary import RotarySelfAttention

__all__ = [
    "AttentionCache",
    "RelativePositions",
    "RelativeSelfAttention",
    "RotarySelfAttention",
    "relative_positions",
]
