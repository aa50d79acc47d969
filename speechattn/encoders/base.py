"""What every encoder is, and the stack of blocks that most of them are."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechattn.attention import (
    AttentionFactory,
    RelativePositions,
    RelativeSelfAttention,
    SelfAttention,
)
from speechattn.dropout import Dropout
from speechattn.encoders.streaming import (
    BlockState,
    EncoderState,
    NextChunk,
    Reader,
    WholeSequence,
)
from speechattn.encoders.subsampling import Subsampling, build_subsampling
from speechattn.masks import Chunks, padding_mask, without_padding

# ESPnet's LayerNorm; its checkpoints are imported, so every block here uses the same.
LAYER_NORM_EPS = 1e-12

# Dynamic chunk training draws chunks of at most this many frames, as U2 does (2012.05481).
MAX_DYNAMIC_CHUNK = 25

Head = Callable[[Tensor], Tensor]


class EncoderOutput(NamedTuple):
    """What an encoder gives.

    Attributes:
        hidden: (B, T', D), zero beyond an item's length; T' is at least 1.
        lengths: (B,) int64, at most T'.
        intermediate: hidden frames (B, T', D) after chosen layers, by the layer's number from 1.
    """

    hidden: Tensor
    lengths: Tensor
    intermediate: dict[int, Tensor]


class Encoder(nn.Module):
    """Turns features into hidden states.

    `forward(x (B, T, F), lengths (B,)) -> (hidden (B, T', output_size), lengths (B,))`. Frames
    beyond an item's length are zero, and what an item gives does not depend on the batch it came
    in.

    Attributes:
        input_size: F.
        output_size: D.
        subsampling: one hidden frame stands for this many input frames.
    """

    input_size: int
    output_size: int
    subsampling: int

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`encode` for those who want the hidden frames alone."""
        return self.encode(x, lengths)[:2]

    def encode(
        self,
        x: Tensor,
        lengths: Tensor,
        head: Head | None = None,
        chunks: Chunks | None = None,
    ) -> EncoderOutput:
        """Encode whole sequences.

        Args:
            x: (B, T, F); whatever stands beyond an item's length is ignored, NaN included.
            lengths: (B,) int64, at most T.
            head: the model's CTC head without its dropout, (B, T', D) to log probabilities
                (B, T', V); for encoders that condition on it.
            chunks: what a hidden frame sees; the encoder's own setting where left out.

        Returns:
            The hidden frames; an item too short for the subsampling has length 0.
        """
        raise NotImplementedError

    def init_state(self, batch: int, chunks: Chunks | None = None) -> EncoderState:
        """What `step` starts with.

        Args:
            batch: B, streams that run side by side.
            chunks: in hidden frames; the encoder's own setting where left out.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot stream")

    def step(
        self, x: Tensor, state: EncoderState, head: Head | None = None, last: bool = False
    ) -> tuple[Tensor, EncoderState]:
        """Encode the next frames of streams; in eval mode equal to `encode` with the same chunks.

        Args:
            x: (B, c, F), any number of frames, none included.
            state: from `init_state` or from the step before.
            head: as in `encode`.
            last: nothing comes after these frames: a chunk that is not complete comes out too.

        Returns:
            (B, n, D), the hidden frames of all chunks that are complete now, n may be 0; and the
            new state.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot stream")


class Block(nn.Module):
    """A layer of a `StackedEncoder`. A subclass says in `run` what it computes.

    Args:
        stochastic_depth: chance p of a training step to skip the block; where it doesn't, what the
            block adds to its input is scaled by 1 / (1 - p) (1603.09382, as ESPnet does).
    """

    def __init__(self, stochastic_depth: float = 0.0):
        super().__init__()
        if not 0 <= stochastic_depth <= 1:
            raise ValueError(f"stochastic_depth is from 0 to 1, not {stochastic_depth}")
        self.stochastic_depth = stochastic_depth

    def run(self, x: Tensor, reader: Reader, scale: float) -> Tensor:
        """x (B, T, D) to (B, T, D), every residual times `scale`; see `Reader`."""
        raise NotImplementedError

    def readers(self) -> Sequence[nn.Module]:
        """The modules that `run` gives to its reader, in turn."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        chunks: Chunks | None = None,
    ) -> Tensor:
        """x: (B, T, D), lengths: (B,), positions: (2T-1, D) to (B, T, D)."""
        scale = 1.0
        if self.training and self.stochastic_depth > 0:
            if torch.rand(()).item() < self.stochastic_depth:
                return x
            scale = 1 / (1 - self.stochastic_depth)
        return self.run(x, WholeSequence(lengths, positions, chunks), scale)

    def init_state(self, batch: int) -> BlockState:
        """What B streams begin with."""
        return tuple(module.init_state(batch) for module in self.readers())

    def step(self, x: Tensor, state: BlockState, left: int) -> tuple[Tensor, BlockState]:
        """One chunk (B, c, D) that sees `left` frames before it (-1: all) to (B, c, D)."""
        reader = NextChunk(state, left)
        return self.run(x, reader, 1.0), reader.state


class StackedEncoder(Encoder):
    """Input layer, positions, equal blocks, final norm.

    Where none of the blocks' attention uses the sinusoids of distances, there are none, and the
    input is not scaled by sqrt(D).

    Args:
        input_size: F.
        output_size: D, even.
        blocks: layers.
        subsampling: the input layer, see `speechattn.encoders.subsampling`.
        dropout: of the input layer's output.
        layer_drop: chance of a block to be skipped by a training step (1909.11556, without
            scaling, as ESPnet's `layer_drop_rate`).
        position_dropout: of the scaled input and of the sinusoids; as `dropout` where None.
        intermediate: layers, from 1, whose hidden frames `encode` returns too (intermediate CTC,
            2102.03216).
        self_conditioning: V, where each of these layers adds a projection of the CTC head's
            posteriors to the hidden frames (2104.02724); 0 for none.
        chunk_size: hidden frames that see each other, and nothing further to the right; 0 for
            whole sequences.
        left_context: hidden frames before its chunk that a frame attends to; -1 for all.
        dynamic_chunk: each training batch sees whole sequences or, half of the time, chunks of 1
            to 25 frames, drawn evenly, as U2 does (2012.05481); `chunk_size` is left to eval mode.
    """

    # ESPnet's Conformer hands out intermediate frames through the final norm; its E-Branchformer
    # hands them out as they are, since its blocks end in a norm of their own.
    norm_intermediate = True

    def __init__(
        self,
        input_size: int,
        output_size: int,
        blocks: Sequence[Block],
        subsampling: Subsampling,
        dropout: float,
        layer_drop: float,
        position_dropout: float | None = None,
        intermediate: Sequence[int] = (),
        self_conditioning: int = 0,
        chunk_size: int = 0,
        left_context: int = -1,
        dynamic_chunk: bool = False,
    ):
        super().__init__()
        layers = tuple(sorted(intermediate))
        if layers and not 1 <= layers[0] <= layers[-1] < len(blocks):
            raise ValueError(
                f"intermediate: layers are from 1 to {len(blocks) - 1}, the last but one; "
                f"not {list(intermediate)}"
            )
        if self_conditioning and not layers:
            raise ValueError("self_conditioning needs the layers that condition: `intermediate`")
        if not 0 <= layer_drop <= 1:
            raise ValueError(f"layer_drop is from 0 to 1, not {layer_drop}")
        self.input_size = input_size
        self.output_size = output_size
        self.layer_drop = layer_drop
        self.intermediate = layers
        self.left_context = left_context
        self.dynamic_chunk = dynamic_chunk
        chunks = Chunks(chunk_size or 1, left_context)  # for dynamic ones, left_context is checked
        self.chunks = chunks if chunk_size else None
        self.input = build_subsampling(subsampling, input_size, output_size, dropout)
        self.subsampling = self.input.factor
        if position_dropout is None:
            position_dropout = dropout
        self.blocks = nn.ModuleList(blocks)
        if any(isinstance(m, SelfAttention) and m.uses_positions for m in self.blocks.modules()):
            self.positions = RelativePositions(output_size, position_dropout)
        else:
            self.positions = _Unscaled(position_dropout)
        self.norm = nn.LayerNorm(output_size, eps=LAYER_NORM_EPS)
        self.conditioning = None
        if self_conditioning:
            self.conditioning = nn.Linear(self_conditioning, output_size)

    def encode(
        self,
        x: Tensor,
        lengths: Tensor,
        head: Head | None = None,
        chunks: Chunks | None = None,
    ) -> EncoderOutput:
        self._check_head(head)
        x = clean_input(x, lengths)
        x, lengths = self.input(x, lengths)
        x, positions = self.positions(x)
        padding = ~padding_mask(lengths, x.shape[1])[..., None]  # (B, T', 1)
        chunks = chunks or self._own_chunks()
        intermediate = {}
        for number, block in enumerate(self.blocks, 1):
            # A dropped layer still hands out its frames: a loss on them is always there.
            if not self._drops():
                x = block(x, lengths, positions, chunks)
            if number in self.intermediate:
                hidden = self.norm(x) if self.norm_intermediate else x
                intermediate[number] = hidden.masked_fill(padding, 0.0)
                x = self._condition(x, hidden, head)
        return EncoderOutput(self.norm(x).masked_fill(padding, 0.0), lengths, intermediate)

    def init_state(self, batch: int, chunks: Chunks | None = None) -> EncoderState:
        chunks = chunks or self.chunks
        if chunks is None:
            raise ValueError("streaming goes by chunks: set chunk_size, or pass `chunks`")
        return EncoderState(
            chunks,
            self.input.init_state(batch),
            self.norm.weight.new_zeros(batch, 0, self.output_size),
            tuple(block.init_state(batch) for block in self.blocks),
        )

    def step(
        self, x: Tensor, state: EncoderState, head: Head | None = None, last: bool = False
    ) -> tuple[Tensor, EncoderState]:
        if self.training:
            raise RuntimeError("an encoder streams in eval mode only: call eval() first")
        self._check_head(head)
        size, left = state.chunks.size, state.chunks.left
        hidden, features = self.input.step(x, state.features)
        if hidden.shape[1]:
            hidden, _ = self.positions(hidden)
        hidden = torch.cat((state.pending.to(hidden), hidden), dim=1)
        ready = hidden.shape[1] if last else hidden.shape[1] // size * size
        blocks, outputs = state.blocks, [hidden[:, :0]]
        for start in range(0, ready, size):
            y, blocks = self._step_chunk(hidden[:, start : start + size], blocks, left, head)
            outputs.append(y)
        state = EncoderState(state.chunks, features, hidden[:, ready:], blocks)
        return torch.cat(outputs, dim=1), state

    def _step_chunk(
        self, x: Tensor, states: tuple[BlockState, ...], left: int, head: Head | None
    ) -> tuple[Tensor, tuple[BlockState, ...]]:
        """One chunk (B, c, D) through all blocks."""
        new = []
        for number, (block, state) in enumerate(zip(self.blocks, states, strict=True), 1):
            x, state = block.step(x, state, left)
            new.append(state)
            if number in self.intermediate and self.conditioning is not None:
                x = self._condition(x, self.norm(x) if self.norm_intermediate else x, head)
        return self.norm(x), tuple(new)

    def _condition(self, x: Tensor, hidden: Tensor, head: Head | None) -> Tensor:
        """Tell the next layers what the CTC head makes of `hidden`."""
        if self.conditioning is None:
            return x
        return x + self.conditioning(head(hidden).exp())

    def _check_head(self, head: Head | None) -> None:
        if self.conditioning is not None and head is None:
            raise ValueError("an encoder with self_conditioning needs the CTC head: pass `head`")

    def _drops(self) -> bool:
        return self.training and self.layer_drop > 0 and torch.rand(()).item() < self.layer_drop

    def _own_chunks(self) -> Chunks | None:
        if not (self.training and self.dynamic_chunk):
            return self.chunks
        if torch.rand(()).item() < 0.5:
            return None
        return Chunks(int(torch.randint(1, MAX_DYNAMIC_CHUNK + 1, ())), self.left_context)


class _Unscaled(nn.Module):
    """Stands where `RelativePositions` does for attention that knows its positions itself."""

    def __init__(self, dropout: float):
        super().__init__()
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.dropout(x), None


def clean_input(x: Tensor, lengths: Tensor) -> Tensor:
    """Zeros beyond an item's length; a frame of them where a batch has none, (B, T, F) to the same.

    A sequence of no frames has no distances to attend over, and nothing to convolve.
    """
    if x.shape[1] == 0:
        x = functional.pad(x, (0, 0, 0, 1))
    return without_padding(x, lengths)


def attention_per_layer(
    attention: AttentionFactory | list[AttentionFactory] | None, num_blocks: int
) -> list[AttentionFactory]:
    """One mechanism a layer, from one for all or from a list of them."""
    if attention is None:
        attention = RelativeSelfAttention
    if not isinstance(attention, list):
        return [attention] * num_blocks
    if len(attention) != num_blocks:
        raise ValueError(f"attention: {len(attention)} mechanisms for {num_blocks} layers")
    return attention


def per_layer(value: float | Sequence[float], num_blocks: int, name: str) -> list[float]:
    """One number a layer, from one for all or from a list of them."""
    if isinstance(value, (int, float)):
        return [float(value)] * num_blocks
    if len(value) != num_blocks:
        raise ValueError(f"{name}: {len(value)} numbers for {num_blocks} layers")
    return [float(v) for v in value]
