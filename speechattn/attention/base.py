"""The contract of self-attention mechanisms, so that an encoder can take any from a config line."""

from collections.abc import Callable
from typing import ClassVar, Literal, Protocol, TypeVar

from torch import Tensor, nn

from speechattn.attention.cache import AttentionCache
from speechattn.attention.rotary import rotate
from speechattn.dropout import Dropout
from speechattn.masks import Chunks

# The taxonomy of CAB (2210.07661, section 3.1).
Pattern = Literal["noncausal self", "causal self", "noncausal cross", "causal cross"]


class AttentionState(Protocol):
    """The state of a stream: what a mechanism keeps of earlier frames. Never changed in place."""

    def keep(self, frames: int) -> "AttentionState":
        """Keep only the newest frames.

        Raises:
            ValueError: the state is a sum over all frames.
        """
        ...


State = TypeVar("State", bound=AttentionState)


class SelfAttention(nn.Module):
    """Attention among the frames of each utterance.

    A subclass is constructed as `(width, heads, dropout=0.0, *, its own options with defaults)` and
    implements `attend`. One that uses `positions`, or chunks of more than one frame, overrides
    `forward` instead, with the same signature. One that streams has `init_state` and `step`.

    Attributes:
        patterns: those it serves. With "causal self", `forward` takes `Chunks(1)`: each frame sees
            itself and all frames before it.
        uses_positions: `forward` needs the sinusoids of `RelativePositions`.
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
        """Attend within each utterance.

        Args:
            x: (B, T, D), finite everywhere, padding included; padding does not affect the result.
            lengths: (B,) int64. An utterance of no frames gives finite values, never NaN.
            positions: (2T-1, D) sinusoids, where the mechanism uses them.
            chunks: what a frame sees; None for its whole utterance.

        Returns:
            (B, T, D); frames beyond an utterance's length are meaningless.

        Raises:
            ValueError: the mechanism does not support such chunks.
        """
        return self.attend(x, lengths, self.only_causal(chunks))

    def attend(self, x: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        """Attend to whole utterances, or causally; see `forward`."""
        raise NotImplementedError

    def init_state(self, batch: int) -> AttentionState:
        """Return the state of B streams before their first frame."""
        raise NotImplementedError(f"{type(self).__name__} cannot stream")

    def step(self, x: Tensor, past: State) -> tuple[Tensor, State]:
        """Attend from the next frames of streams to each other and to `past`; no dropout.

        Args:
            x: (B, c, D).
            past: from `init_state` or the step before, with the same weights.

        Returns:
            (B, c, D), and the state with these frames.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot stream")

    def only_causal(self, chunks: Chunks | None) -> bool:
        """Return whether `chunks` mean causal attention rather than whole utterances.

        Raises:
            ValueError: the chunks are something else, or the mechanism is not causal.
        """
        if chunks is None:
            return False
        name, causal = type(self).__name__, "causal self" in self.patterns
        if not causal:
            raise ValueError(
                f"{name} sees whole sequences only: leave chunk_size and dynamic_chunk at 0 and "
                "false"
            )
        if chunks.size != 1 or chunks.left >= 0:
            raise ValueError(
                f"{name} sees whole sequences, or one frame and all before it "
                f"(chunk_size 1, left_context -1), not chunks of {chunks.size} with {chunks.left} "
                "before them"
            )
        return True


class HeadSelfAttention(SelfAttention):
    """A mechanism with query, key, value and output projections, each D to D.

    Args:
        width: D.
        heads: H, divides D.
        dropout: of the attention weights.
        rotary: turn queries and keys by their positions (2104.09864); D / H is even.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, rotary: bool = False):
        super().__init__()
        check_heads(type(self).__name__, width, heads, rotary)
        self.width, self.heads, self.rotary = width, heads, rotary
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    @property
    def weight_dropout(self) -> float:
        """Return the dropout of the weights: 0 outside of training."""
        return self.dropout.p if self.training else 0.0

    def init_state(self, batch: int) -> AttentionCache:
        """Return the empty cache of B streams."""
        if type(self).step is SelfAttention.step:
            return super().init_state(batch)
        nothing = self.query.weight.new_zeros(batch, 0, self.heads, self.width // self.heads)
        return AttentionCache(nothing, nothing)

    def project(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, T, H, Dh) of frames from index `first` on."""
        q, k, v = split_heads(self.heads, self.query(x), self.key(x), self.value(x))
        return (rotate(q, first), rotate(k, first), v) if self.rotary else (q, k, v)


def split_heads(heads: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Reshape each (B, T, H Dh) to (B, T, H, Dh)."""
    return tuple(x.unflatten(-1, (heads, -1)) for x in tensors)


def check_heads(name: str, width: int, heads: int, rotary: bool = False) -> None:
    """Check that the heads divide the width, into even parts where positions are rotary.

    Raises:
        ValueError: they do not.
    """
    if heads < 1 or width % (2 * heads if rotary else heads):
        parts = "even parts" if rotary else "equal parts"
        raise ValueError(f"{name}: {heads} heads do not cut width {width} into {parts}")


# Makes a mechanism from width, heads and dropout. YAML names the class, and its own options.
AttentionFactory = Callable[[int, int, float], SelfAttention]
