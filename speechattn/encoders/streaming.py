"""The other frames that a block reads: those of a whole sequence, or of a stream.

A block is written once, in `run`, in terms of a `Context` that calls the modules that read more
than one frame. `SequenceContext` gives them all frames at once, `ChunkContext` one chunk and the
state that they kept of the chunks before.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from speechattn.attention import AttentionCache
from speechattn.masks import Chunks

# The state of a block: an entry for each module that it calls through its context, in that order.
BlockState = tuple[AttentionCache | Tensor, ...]


@dataclass(frozen=True)
class EncoderState:
    """The state of B streams of equal length. A step makes a new one.

    Attributes:
        chunks: hidden frames a chunk, and how many before it stay visible to attention.
        features: (B, p, F) input that coming hidden frames still read.
        pending: (B, q, D) hidden frames of a chunk that is not complete yet.
        blocks: the state of each block.
    """

    chunks: Chunks
    features: Tensor
    pending: Tensor
    blocks: tuple[BlockState, ...]


class Context(Protocol):
    """Calls the modules of a block that read more than one frame; x (B, T, ...) each."""

    def attend(self, module: nn.Module, x: Tensor) -> Tensor: ...

    def convolve(self, module: nn.Module, x: Tensor) -> Tensor: ...

    def pool(self, module: nn.Module, x: Tensor) -> Tensor: ...


class SequenceContext:
    """A ragged batch of whole sequences.

    Args:
        lengths: (B,).
        positions: (2T-1, D) sinusoids for attention with relative positions.
        chunks: the frames visible to each frame; None for all.
    """

    def __init__(self, lengths: Tensor, positions: Tensor | None, chunks: Chunks | None):
        self.lengths, self.positions, self.chunks = lengths, positions, chunks

    def attend(self, module: nn.Module, x: Tensor) -> Tensor:
        return module(x, self.lengths, self.positions, self.chunks)

    def convolve(self, module: nn.Module, x: Tensor) -> Tensor:
        return module(x, self.lengths, self.chunks)

    pool = convolve


class ChunkContext:
    """The next chunk of streams; collects the new state of each module.

    Args:
        state: of the block, before the chunk.
        left: frames before a chunk that are visible to attention, -1 for all.
    """

    def __init__(self, state: BlockState, left: int):
        self._past = iter(state)
        self._left = left
        self._state: list[AttentionCache | Tensor] = []

    @property
    def state(self) -> BlockState:
        """Return the state of the block after the chunk."""
        return tuple(self._state)

    def attend(self, module: nn.Module, x: Tensor) -> Tensor:
        y, cache = module.step(x, next(self._past))
        self._state.append(cache if self._left < 0 else cache.keep(self._left))
        return y

    def convolve(self, module: nn.Module, x: Tensor) -> Tensor:
        y, past = module.step(x, next(self._past))
        self._state.append(past)
        return y

    def pool(self, module: nn.Module, x: Tensor) -> Tensor:
        y, past = module.step(x, next(self._past))
        if self._left >= 0:
            past = past[:, max(past.shape[1] - self._left, 0) :]
        self._state.append(past)
        return y
