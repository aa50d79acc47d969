"""What streaming searches return and are told, and what they have in common."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from speechattn.decoding.ctc import TokenSpan


@dataclass(frozen=True)
class StreamTokens:
    """The tokens of a search after the frames so far.

    Attributes:
        final: tokens that will not change, each handed out once; frames counted from where the
            search began.
        pending: those after them, which may change.
        certain: so many of the first pending ones will not change either, but are still going on.
    """

    final: list[TokenSpan] = field(default_factory=list)
    pending: list[TokenSpan] = field(default_factory=list)
    certain: int = 0


class StreamSearch(Protocol):
    """Reads the frames of one utterance."""

    def accept(self, log_probs: Tensor) -> StreamTokens:
        """Read the next frames (T, V)."""

    def finish(self) -> list[TokenSpan]:
        """End the utterance and return the tokens that were pending."""

    def size(self) -> int:
        """Return how many numbers are remembered."""


@dataclass(frozen=True)
class StreamLimits:
    """When a streaming search is certain of a token, and how much it remembers.

    Attributes:
        frame_shift: seconds a frame.
        margin: a prefix whose score is this much below the best stands no chance, natural log.
        settle_seconds: for so long the best hypothesis has to have a token; inf for never; None
            for what the search itself finds usual.
        pending_seconds: what is older is certain in any case.
    """

    frame_shift: float
    margin: float = math.inf
    settle_seconds: float | None = None
    pending_seconds: float = 8.0

    def frames(self, seconds: float) -> int:
        """Return seconds in frames, at least one."""
        return max(round(seconds / self.frame_shift), 1)

    @property
    def pending_frames(self) -> int:
        """Return `pending_seconds` in frames."""
        return self.frames(self.pending_seconds)

    def settle_frames(self, usual: float | None) -> float:
        """Return `settle_seconds`, or else the usual seconds (None: never), in frames."""
        seconds = usual if self.settle_seconds is None else self.settle_seconds
        return math.inf if seconds is None or math.isinf(seconds) else self.frames(seconds)


class StabilityTracker:
    """How long each of the best tokens has been there, with all before it unchanged.

    Args:
        settle: frames after which a token is taken for certain; inf for never.
    """

    def __init__(self, settle: float):
        self.settle = settle
        self._since: list[tuple[int, int]] = []  # a token, and a frame

    def update(self, tokens: Sequence[int], frame: int) -> int:
        """Return how many of the best tokens after a frame have been there for long enough."""
        pairs = enumerate(zip(self._since, tokens, strict=False))
        kept = next((i for i, ((old, _), token) in pairs if old != token), None)
        kept = min(len(self._since), len(tokens)) if kept is None else kept
        self._since = self._since[:kept] + [(token, frame) for token in tokens[kept:]]
        return sum(frame - since >= self.settle for _, since in self._since)

    def take(self, count: int) -> None:
        """Forget the first tokens, which were handed out."""
        self._since = self._since[count:]

    def __len__(self) -> int:
        return len(self._since)
