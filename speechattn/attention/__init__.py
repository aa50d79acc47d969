"""Attention mechanisms, one a file.

Legend: B utterances, T frames, H heads, D width, Dh = D / H width of a head.
"""

from speechattn.attention.positions import RelativePositions, relative_positions
from speechattn.attention.relative import RelativeSelfAttention, relative_shift

__all__ = ["RelativePositions", "RelativeSelfAttention", "relative_positions", "relative_shift"]
