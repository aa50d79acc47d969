"""What every encoder is."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from speechattn.encoders.streaming import EncoderState
from speechattn.errors import ConfigError
from speechattn.masks import Chunks, without_padding

# The model's CTC head without its dropout: (B, T', D) to log probabilities (B, T', V).
Head = Callable[[Tensor], Tensor]


class EncoderOutput(NamedTuple):
    """Hidden frames of a batch.

    Attributes:
        hidden: (B, T', D), zero beyond an item's length; T' is at least 1.
        lengths: (B,) int64, at most T'.
        intermediate: hidden frames (B, T', D) after chosen layers, by the layer's number from 1.
    """

    hidden: Tensor
    lengths: Tensor
    intermediate: dict[int, Tensor]


class Encoder(nn.Module):
    """Turns features into hidden states; the base of every encoder, those of plug-ins too.

    `forward(x (B, T, F), lengths (B,)) -> (hidden (B, T', output_size), lengths (B,))`. Frames
    beyond an item's length are zero, and an item's output does not depend on the rest of its batch.
    A subclass implements `encode`; one that can stream sets `streams` and implements `init_state`,
    `step` and, where it needs more input than its subsampling says, `features_needed`.

    Attributes:
        input_size: F.
        output_size: D.
        subsampling_factor: input frames to one hidden frame.
        streams: it can run chunk by chunk.
        self_conditioning: V, where layers are conditioned on the CTC head; 0 for none.
        chunks: the frames visible to each hidden frame; None for the whole sequence.
        left_context: visible hidden frames before a chunk, -1 for all.
        dynamic_chunk: trained with chunks of many sizes, so that a stream may choose its own.
    """

    input_size: int
    output_size: int
    subsampling_factor: int
    streams: ClassVar[bool] = False
    self_conditioning: int = 0
    chunks: Chunks | None = None
    left_context: int = -1
    dynamic_chunk: bool = False

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Run `encode` and return the hidden frames and their lengths alone."""
        return self.encode(x, lengths)[:2]

    def encode(
        self, x: Tensor, lengths: Tensor, head: Head | None = None, chunks: Chunks | None = None
    ) -> EncoderOutput:
        """Encode whole sequences.

        Args:
            x: (B, T, F); whatever stands beyond an item's length is ignored, NaN included.
            lengths: (B,) int64, at most T.
            head: for encoders that condition on it.
            chunks: the frames visible to each hidden frame; the encoder's own setting by default.

        Returns:
            The hidden frames; an item too short for the subsampling has length 0.
        """
        raise NotImplementedError

    def stream_chunks(
        self, chunk_size: int | None = None, left_context: int | None = None
    ) -> Chunks:
        """Return the chunks in which a stream is encoded.

        Args:
            chunk_size: hidden frames a chunk; the encoder's own by default.
            left_context: visible hidden frames before a chunk, -1 for all; likewise.

        Raises:
            ConfigError: the encoder needs whole utterances.
        """
        if not self.streams:
            raise ConfigError(
                f"{type(self).__name__} needs whole utterances; train a ConformerEncoder, "
                "BranchformerEncoder or EBranchformerEncoder with chunk_size"
            )
        if not chunk_size and self.chunks is None:
            raise ConfigError(
                "it was trained with dynamic_chunk: choose a chunk_size (--chunk-size)"
                if self.dynamic_chunk
                else "it was trained on whole utterances; train it with init_args.chunk_size, in "
                "hidden frames, or with dynamic_chunk"
            )
        own = self.chunks or Chunks(1, self.left_context)
        left = own.left if left_context is None else left_context
        return Chunks(chunk_size or own.size, left)

    def features_needed(self, frames: int) -> int:
        """Return how many features of a stream its first `frames` hidden frames need."""
        return frames * self.subsampling_factor

    def init_state(self, batch: int, chunks: Chunks | None = None) -> EncoderState:
        """Return the state of streams that begin.

        Args:
            batch: B, streams that run side by side.
            chunks: in hidden frames; the encoder's own setting by default.

        Raises:
            NotImplementedError: the encoder, or its attention, cannot stream.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot stream")

    def restart(self, state: EncoderState) -> EncoderState:
        """Return a state that has forgotten all chunks, but not the input of the next one."""
        fresh = self.init_state(len(state.pending), state.chunks)
        return replace(fresh, features=state.features, pending=state.pending)

    def step(
        self, x: Tensor, state: EncoderState, head: Head | None = None, last: bool = False
    ) -> tuple[Tensor, EncoderState]:
        """Encode the next frames of streams; in eval mode equal to `encode` with the same chunks.

        Args:
            x: (B, c, F), any number of frames, none included.
            state: from `init_state` or the step before.
            head: as in `encode`.
            last: nothing comes after these frames: a chunk that is not complete comes out too.

        Returns:
            (B, n, D), the hidden frames of all chunks that are complete now, n may be 0; and the
            new state.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot stream")


def clean_input(x: Tensor, lengths: Tensor) -> Tensor:
    """Zero (B, T, F) beyond each item's length; where a batch has no frame, give it one of zeros.

    A sequence of no frames has no distances to attend over, and nothing to convolve.
    """
    if x.shape[1] == 0:
        x = functional.pad(x, (0, 0, 0, 1))
    return without_padding(x, lengths)
