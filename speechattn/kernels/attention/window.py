"""Which neighbours a frame sees.

Generalized Neighborhood Attention (2504.16922) in one dimension, with the dilation of
DiNAT (2209.15001). Unlike there a window is not shifted inwards at the borders of an item: what of
it lies beyond is not seen, so that a frame sees the same neighbours however long the item is, and
streams see what whole items do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Which keys a query sees.

    Every d-th frame makes a sequence of its own: frame i is number i' = i // d of sequence i mod d,
    and sees frames of that sequence alone. There, s neighbouring queries share the window of their
    group's centre:

        centre(i') = s (i' // s) + s // 2
        i' sees j' where  -left <= j' - centre(i') <= right,  and j' <= i' if causal.

    Stride 1 is a sliding window, stride left + right + 1 is attention within blocks.

    Attributes:
        left: keys before the centre.
        right: keys after the centre.
        stride: s; a group lies within its window, so that a frame always sees itself.
        dilation: d.
        causal: nothing after the query is seen. With stride 1 that is a `right` of 0.

    Raises:
        ValueError: there are no such windows.
    """

    left: int
    right: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False

    def __post_init__(self) -> None:
        if self.left < 0 or self.right < 0:
            raise ValueError(
                f"Window: left and right are at least 0 frames, not {self.left} and {self.right}"
            )
        if self.stride < 1 or self.dilation < 1:
            raise ValueError(
                f"Window: stride and dilation are at least 1, not {self.stride} and {self.dilation}"
            )
        if self.before < 0 or self.right < (self.stride - 1) // 2:
            raise ValueError(
                f"Window: {self.left} frames to the left and {self.right} to the right of the "
                f"centre do not cover a group of {self.stride}: take a smaller stride or a larger "
                "window"
            )

    @classmethod
    def of(cls, size: int | Sequence[int], stride: int = 1, dilation: int = 1) -> "Window":
        """From the number of keys, of which one more is to the left where it is even; or from two.

        Args:
            size: keys of a window, or how many are left and right of the centre.
            stride: s.
            dilation: d.

        Raises:
            ValueError: there are no such windows.
        """
        if isinstance(size, int):
            if size < 1:
                raise ValueError(f"Window: a window is of at least 1 frame, not {size}")
            return cls(size // 2, (size - 1) // 2, stride, dilation)
        if len(size) != 2:
            raise ValueError(f"Window: one size, or left and right, not {list(size)}")
        return cls(size[0], size[1], stride, dilation)

    @property
    def before(self) -> int:
        """How many keys before its own first query a group sees."""
        return self.left - self.stride // 2

    @property
    def after(self) -> int:
        """How many keys after its own last query a group sees."""
        return 0 if self.causal else self.right - (self.stride - 1) // 2

    @property
    def reach(self) -> int:
        """Frames of the past that the next frame sees at most."""
        return (self.before + self.stride - 1) * self.dilation

    def past(self) -> "Window":
        """The same without what comes after the query."""
        right = 0 if self.stride == 1 else self.right
        return replace(self, right=right, causal=True)

    def seen(self, i: Tensor, j: Tensor) -> Tensor:
        """Whether queries at frames i see keys at frames j: bool, of the two's broadcast shape."""
        d, s = self.dilation, self.stride
        number = i.div(d, rounding_mode="floor")
        centre = number.div(s, rounding_mode="floor") * s + s // 2
        distance = j.div(d, rounding_mode="floor") - centre
        seen = (distance >= -self.left) & (distance <= self.right)
        if d > 1:
            seen = seen & (i % d == j % d)
        return seen & (j <= i) if self.causal else seen
