"""The stack of blocks that most encoders are."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from speechattn.attention import (
    AttentionFactory,
    RelativePositions,
    RelativeSelfAttention,
    SelfAttention,
)
from speechattn.dropout import Dropout
from speechattn.encoders.base import Encoder, EncoderOutput, Head, clean_input
from speechattn.encoders.streaming import (
    BlockState,
    ChunkContext,
    Context,
    EncoderState,
    SequenceContext,
)
from speechattn.encoders.subsampling import Subsampling, build_subsampling
from speechattn.masks import Chunks, padding_mask

# ESPnet's LayerNorm; its checkpoints are imported, so every block here uses the same.
LAYER_NORM_EPS = 1e-12

# Dynamic chunk training draws chunks of at most this many frames, as U2 does (2012.05481).
MAX_DYNAMIC_CHUNK = 25


class Block(nn.Module):
    """A layer of a `StackedEncoder`. A subclass computes it in `run`.

    Args:
        stochastic_depth: chance p of a training step to skip the block; where it doesn't, what the
            block adds to its input is scaled by 1 / (1 - p) (1603.09382, as ESPnet does).
    """

    def __init__(self, stochastic_depth: float = 0.0):
        super().__init__()
        if not 0 <= stochastic_depth <= 1:
            raise ValueError(f"stochastic_depth is from 0 to 1, not {stochastic_depth}")
        self.stochastic_depth = stochastic_depth

    def run(self, x: Tensor, context: Context, scale: float) -> Tensor:
        """Map x (B, T, D) to (B, T, D), every residual times `scale`; see `Context`."""
        raise NotImplementedError

    def stateful_modules(self) -> Sequence[nn.Module]:
        """Return the modules that `run` calls through its context, in that order."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        chunks: Chunks | None = None,
    ) -> Tensor:
        """Map x (B, T, D), with lengths (B,) and positions (2T-1, D), to (B, T, D)."""
        scale = 1.0
        if self.training and self.stochastic_depth > 0:
            if torch.rand(()).item() < self.stochastic_depth:
                return x
            scale = 1 / (1 - self.stochastic_depth)
        return self.run(x, SequenceContext(lengths, positions, chunks), scale)

    def init_state(self, batch: int) -> BlockState:
        """Return the state of B streams that begin."""
        return tuple(module.init_state(batch) for module in self.stateful_modules())

    def step(self, x: Tensor, state: BlockState, left: int) -> tuple[Tensor, BlockState]:
        """Map a chunk (B, c, D) to (B, c, D); `left` frames before it are visible (-1: all)."""
        context = ChunkContext(state, left)
        return self.run(x, context, 1.0), context.state


@dataclass(eq=False, repr=False)
class StackedEncoder(Encoder):
    """Input layer, positions, blocks of one kind, final norm.

    The fields are the constructor's arguments. A subclass, a dataclass with `kw_only`, adds those
    of its blocks and makes a block of them (`make_block`). Where no block's attention
    uses the sinusoids of distances, there are none, and the input is not scaled by sqrt(D).

    Args:
        input_size: F, features a frame.
        output_size: D, width of every layer; even.
        attention_heads: H, divides D.
        num_blocks: layers.
        subsampling: `none` (F = D), `linear` and `projection` keep the frame rate, `conv2d1` to
            `conv2d8` divide it by 1 to 8, `conv1d1` to `conv1d3` by 1 to 3.
        dropout: of the input and of every module's output.
        attention_dropout: of the attention weights.
        attention: the mechanism, any of `speechattn.attention`, for all blocks or a list of one a
            block; `RelativeSelfAttention`, as ESPnet's `latest`, where None.
        causal: convolutions read nothing to the right of a frame.
        layer_drop: chance of a block to be skipped by a training step (1909.11556, without
            scaling, as ESPnet's `layer_drop_rate`).
        position_dropout: of the scaled input and of the sinusoids; as `dropout` where None.
        stochastic_depth: chance of each block to be skipped by a training step, with scaling; one
            for all blocks, or a list.
        intermediate: layers, from 1, whose hidden frames `encode` returns too (intermediate CTC,
            2102.03216).
        self_conditioning: V, where each of these layers adds a projection of the CTC head's
            posteriors to the hidden frames (2104.02724); 0 for none.
        chunk_size: hidden frames that see each other, and nothing further to the right; 0 for
            whole sequences.
        left_context: hidden frames before its chunk that a frame attends to; -1 for all.
        dynamic_chunk: each training batch has whole sequences or, half of the time, chunks of 1
            to 25 frames, drawn evenly, as U2 does (2012.05481); `chunk_size` is left to eval mode.
    """

    input_size: int
    output_size: int = 256
    attention_heads: int = 4
    _: KW_ONLY
    num_blocks: int = 12
    subsampling: Subsampling = "conv2d4"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    attention: AttentionFactory | list[AttentionFactory] | None = None
    causal: bool = False
    layer_drop: float = 0.0
    position_dropout: float | None = None
    stochastic_depth: float | list[float] = 0.0
    intermediate: Sequence[int] = ()
    self_conditioning: int = 0
    chunk_size: int = 0
    left_context: int = -1
    dynamic_chunk: bool = False

    streams: ClassVar[bool] = True
    # ESPnet's Conformer hands out intermediate frames through the final norm; its E-Branchformer
    # hands them out as they are, since its blocks end in a norm of their own.
    norm_intermediate: ClassVar[bool] = True

    def __post_init__(self):
        super().__init__()
        width, count = self.output_size, self.num_blocks
        self.intermediate = layers = tuple(sorted(self.intermediate))
        if layers and not 1 <= layers[0] <= layers[-1] < count:
            limits = f"from 1 to {count - 1}, the last but one; not {list(layers)}"
            raise ValueError(f"intermediate: layers are {limits}")
        if self.self_conditioning and not layers:
            raise ValueError("self_conditioning needs the layers that condition: `intermediate`")
        if not 0 <= self.layer_drop <= 1:
            raise ValueError(f"layer_drop is from 0 to 1, not {self.layer_drop}")
        chunks = Chunks(self.chunk_size or 1, self.left_context)  # checked for dynamic ones too
        self.chunks = chunks if self.chunk_size else None
        mechanism = RelativeSelfAttention if self.attention is None else self.attention
        del self.attention  # a factory out of a configuration can be neither copied nor pickled
        mechanisms = per_layer(mechanism, count, "attention")
        depths = per_layer(self.stochastic_depth, count, "stochastic_depth")
        options = width, self.attention_heads, self.attention_dropout
        blocks = [
            self.make_block(layer, partial(attention, *options), depth)
            for layer, (attention, depth) in enumerate(zip(mechanisms, depths, strict=True))
        ]
        self.input = build_subsampling(self.subsampling, self.input_size, width, self.dropout)
        self.subsampling_factor = self.input.factor
        self.blocks = nn.ModuleList(blocks)
        dropout = self.dropout if self.position_dropout is None else self.position_dropout
        if any(isinstance(m, SelfAttention) and m.uses_positions for m in self.blocks.modules()):
            self.positions = RelativePositions(width, dropout)
        else:
            self.positions = _Unscaled(dropout)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.conditioning = None
        if self.self_conditioning:
            self.conditioning = nn.Linear(self.self_conditioning, width)

    def make_block(
        self, layer: int, attention: Callable[[], SelfAttention], stochastic_depth: float
    ) -> Block:
        """Make the block of a layer, from 0, with a mechanism that `attention` makes."""
        raise NotImplementedError

    def features_needed(self, frames: int) -> int:
        return (frames - 1) * self.input.factor + self.input.shortest

    def encode(
        self, x: Tensor, lengths: Tensor, head: Head | None = None, chunks: Chunks | None = None
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
        """Run a chunk (B, c, D) through all blocks."""
        new = []
        for number, (block, state) in enumerate(zip(self.blocks, states, strict=True), 1):
            x, state = block.step(x, state, left)
            new.append(state)
            if number in self.intermediate and self.conditioning is not None:
                x = self._condition(x, self.norm(x) if self.norm_intermediate else x, head)
        return self.norm(x), tuple(new)

    def _condition(self, x: Tensor, hidden: Tensor, head: Head | None) -> Tensor:
        """Add the projected posteriors of the CTC head on `hidden`."""
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
    """In place of `RelativePositions` for attention with positions of its own."""

    def __init__(self, dropout: float):
        super().__init__()
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.dropout(x), None


def per_layer(value: Any, num_blocks: int, name: str) -> list[Any]:
    """Return one value a layer, from one for all or from a sequence of them.

    Raises:
        ValueError: the sequence has another length; the message calls it `name`.
    """
    if not isinstance(value, (list, tuple)):
        return [value] * num_blocks
    if len(value) != num_blocks:
        raise ValueError(f"{name}: {len(value)} entries for {num_blocks} layers")
    return list(value)
