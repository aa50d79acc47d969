"""The window of neighbours that a frame sees.

Generalized Neighborhood Attention (2504.16922) in one dimension, with the dilation of DiNAT
(2209.15001). Unlike there a window is cut off at the ends of an utterance, not shifted inwards, so
that a frame sees the same neighbours whatever the length, and streams equal whole utterances.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class AttentionWindow:
    """The keys that a query sees.

    Every d-th frame forms a sequence: frame i is number i' = i // d of sequence i mod d, and sees
    only frames of that sequence. There, s neighbouring queries share the window of their group's
    centre:

        centre(i') = s (i' // s) + s // 2
        i' sees j' where  -left <= j' - centre(i') <= right,  and j' <= i' if causal.

    Stride 1 is a sliding window, stride left + right + 1 is attention within blocks.

    Attributes:
        left, right: keys before and after the centre.
        stride: s; a group lies within its window, so that a frame always sees itself.
        dilation: d.
        causal: nothing after the query is seen. With stride 1 that is a `right` of 0.

    Raises:
        ValueError: a number is out of range, or a group is not within its window.
    """

    left: int
    right: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False

    def __post_init__(self) -> None:
        if self.left < 0 or self.right < 0:
            raise ValueError(
                f"AttentionWindow: left and right are at least 0 frames, not {self.left} and "
                f"{self.right}"
            )
        if self.stride < 1 or self.dilation < 1:
            raise ValueError(
                f"AttentionWindow: stride and dilation are at least 1, not {self.stride} and "
                f"{self.dilation}"
            )
        if self.before < 0 or self.right < (self.stride - 1) // 2:
            raise ValueError(
                f"AttentionWindow: {self.left} frames to the left and {self.right} to the right of "
                f"the centre do not cover a group of {self.stride}: take a smaller stride or a "
                "larger window"
            )

    @classmethod
    def from_size(
        cls, size: int | Sequence[int], stride: int = 1, dilation: int = 1
    ) -> "AttentionWindow":
        """Make a window of so many keys.

        Args:
            size: keys of the window, of an even number one more to the left of the centre; or how
                many are left and right of it.
            stride, dilation: as of the class, as are errors.
        """
        if isinstance(size, int):
            if size < 1:
                raise ValueError(f"AttentionWindow: a window is of at least 1 frame, not {size}")
            return cls(size // 2, (size - 1) // 2, stride, dilation)
        if len(size) != 2:
            raise ValueError(f"AttentionWindow: one size, or left and right, not {list(size)}")
        return cls(size[0], size[1], stride, dilation)

    @property
    def before(self) -> int:
        """Return the number of keys that a group sees before its first query."""
        return self.left - self.stride // 2

    @property
    def after(self) -> int:
        """Return the number of keys that a group sees after its last query."""
        return 0 if self.causal else self.right - (self.stride - 1) // 2

    @property
    def reach(self) -> int:
        """Return the largest number of past frames that a frame sees."""
        return (self.before + self.stride - 1) * self.dilation

    def past(self) -> "AttentionWindow":
        """Return the window without what comes after the query."""
        right = 0 if self.stride == 1 else self.right
        return replace(self, right=right, causal=True)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        """Return a mask, True where queries at frames i see keys at frames j, which broadcast."""
        d, s = self.dilation, self.stride
        number = i.div(d, rounding_mode="floor")
        centre = number.div(s, rounding_mode="floor") * s + s // 2
        distance = j.div(d, rounding_mode="floor") - centre
        seen = (distance >= -self.left) & (distance <= self.right)
        if d > 1:
            seen = seen & (i % d == j % d)
        return seen & (j <= i) if self.causal else seen
