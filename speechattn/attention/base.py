"""What every mechanism of self-attention is, so that an encoder can take any from a config line.

Legend: B utterances, T frames, D width, c frames of a step.
"""

from collections.abc import Callable
from typing import ClassVar, Literal, Protocol, TypeVar

from torch import Tensor, nn

from speechattn.masks import Chunks

# The taxonomy of CAB (2210.07661, section 3.1).
Pattern = Literal["noncausal self", "causal self", "noncausal cross", "causal cross"]


class AttentionState(Protocol):
    """What a mechanism remembers of the frames before; never changed in place."""

    def keep(self, frames: int) -> "AttentionState":
        """The newest frames only.

        Raises:
            ValueError: it cannot forget: its past is a sum.
        """
        ...


State = TypeVar("State", bound=AttentionState)


class SelfAttention(nn.Module):
    """Frames of an item look at each other.

    A subclass is made by `(width, heads, dropout, ...its own options)`, the options with defaults.

    Attributes:
        patterns: those it serves. With "causal self", `forward` takes `Chunks(1)`: each frame and
            what was before it.
        uses_positions: `forward` is to be given the sinusoids of `RelativePositions`.
    """

    patterns: ClassVar[tuple[Pattern, ...]] = ("noncausal self",)
    uses_positions: ClassVar[bool] = False

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        chunks: Chunks | None = None,
    ) -> Tensor:
        """Attend within each item.

        Args:
            x: (B, T, D), finite everywhere, padding included; what stands there changes nothing.
            lengths: (B,) int64. An item of no frames gives finite values, never NaN.
            positions: (2T-1, D) sinusoids, where the mechanism uses them.
            chunks: what a frame sees; None for its whole item.

        Returns:
            (B, T, D); frames beyond an item's length are of no meaning.

        Raises:
            ValueError: the mechanism does not know such chunks.
        """
        raise NotImplementedError

    def init_state(self, batch: int) -> AttentionState:
        """What B streams that have not begun remember."""
        raise NotImplementedError(f"{type(self).__name__} cannot stream")

    def step(self, x: Tensor, past: State) -> tuple[Tensor, State]:
        """The next frames of streams, which see each other and what `past` keeps; no dropout.

        Args:
            x: (B, c, D).
            past: from `init_state` or the step before, with the same weights.

        Returns:
            (B, c, D), and the state with these frames.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot stream")

    def only_causal(self, chunks: Chunks | None) -> bool:
        """Whether to look at the past alone, for mechanisms that know that or the whole item.

        Raises:
            ValueError: chunks of more than one frame, or a bound to the left.
        """
        if chunks is None:
            return False
        if chunks.size != 1 or chunks.left >= 0:
            raise ValueError(
                f"{type(self).__name__} sees whole sequences, or one frame and all before it "
                f"(chunk_size 1, left_context -1), not chunks of {chunks.size} with {chunks.left} "
                "before them"
            )
        return True


# Makes a mechanism from width, heads and dropout. YAML names the class, and its own options.
AttentionFactory = Callable[[int, int, float], SelfAttention]
