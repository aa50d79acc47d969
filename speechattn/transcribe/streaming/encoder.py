"""One modality of a model on a stream, by the chunks of its encoder.

Legend: T hidden frames, D width of a hidden frame, N inputs (samples or pictures).
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from speechattn.encoders import Encoder
from speechattn.errors import ConfigError
from speechattn.masks import Chunks
from speechattn.model.speech_model import SpeechModel
from speechattn.transcribe.streaming.frontend import FrontendStream


class Lane:
    """One modality of a model, by chunks.

    Args:
        model: that it belongs to.
        name: 'audio' or 'video'.
        chunk_size: as of `StreamOptions`.
        left_context: the same.

    Attributes:
        rate: inputs a second.
        taken: inputs that were read so far.
        chunks: what the encoder sees.
        hidden: (1, T, D), frames that nobody took yet.
    """

    def __init__(
        self,
        model: SpeechModel,
        name: str,
        chunk_size: int | None = None,
        left_context: int | None = None,
    ):
        stream = model.streams[name]
        self.encoder = stream.encoder
        self.frontend = FrontendStream(stream.frontend, f"{name}.frontend")
        self.rate = model.sample_rate if name == "audio" else model.video_fps
        chunks = chunks_of(self.encoder, name, chunk_size, left_context)
        self.chunks = chunks
        self.state = self.encoder.init_state(1, chunks)
        self.head = partial(model.stream_log_probs, name)
        self.taken = self.given = 0
        self._chunks = 0
        self._pieces: list[Tensor] = []
        weight = next(self.encoder.parameters())
        self.device = weight.device
        self.hidden = weight.new_zeros(1, 0, self.encoder.output_size)

    def give(self, piece: Tensor) -> None:
        """The next inputs (n, ...)."""
        if len(piece):
            self._pieces.append(piece)
            self.given += len(piece)

    @property
    def needed(self) -> int:
        """Inputs, from the first, that the next chunk needs."""
        frames = (self._chunks + 1) * self.chunks.size
        layer = getattr(self.encoder, "input", None)
        features = frames * self.encoder.subsampling
        if layer is not None:
            features = (frames - 1) * layer.factor + layer.shortest
        return self.frontend.reach.inputs(features)

    def advance(self, upto: int, last: bool = False) -> None:
        """Read on up to an input, for one chunk, or for all that is left where it is the last."""
        x = self._take(upto - self.taken).to(self.device)[None]
        features = self.frontend.step(x, last)
        hidden, self.state = self.encoder.step(features, self.state, self.head, last)
        self.hidden = torch.cat([self.hidden, hidden], dim=1)
        self._chunks += 1

    def restart(self) -> None:
        """The encoder forgets all chunks; what is read next is the beginning."""
        state = self.encoder.init_state(1, self.chunks)
        # The input layer has read features of the next chunk already.
        self.state = replace(state, features=self.state.features, pending=self.state.pending)

    def _take(self, count: int) -> Tensor:
        parts, got = [self._pieces[0][:0]], 0
        while got < count:
            piece = self._pieces[0]
            parts.append(piece[: count - got])
            got += len(parts[-1])
            self._pieces[0] = piece[len(parts[-1]) :]
            if not len(self._pieces[0]) and len(self._pieces) > 1:
                self._pieces.pop(0)
        self.taken += got
        return torch.cat(parts)

    def size(self) -> int:
        """Numbers that are remembered."""
        held = self.frontend.held
        state = [self.state.features, self.state.pending, self.hidden, *self._pieces]
        return (
            sum(x.numel() for x in state)
            + (0 if held is None else held.numel())
            + sum(map(_size, self.state.blocks))
        )


def _size(state) -> int:
    """Numbers in tensors, tuples of them, or dataclasses of them."""
    if isinstance(state, Tensor):
        return state.numel()
    if isinstance(state, tuple | list):
        return sum(map(_size, state))
    return sum(map(_size, vars(state).values())) if hasattr(state, "__dict__") else 0


def chunks_of(
    encoder: Encoder, name: str, chunk_size: int | None, left_context: int | None
) -> Chunks:
    """What an encoder sees of a stream.

    Raises:
        ConfigError: it was made for whole utterances.
    """
    own = getattr(encoder, "chunks", None)
    size = chunk_size or (own.size if own else 0)
    if not size:
        dynamic = getattr(encoder, "dynamic_chunk", False)
        raise ConfigError(
            f"{name}.encoder reads whole utterances, so it cannot stream: "
            + (
                "it was trained with dynamic_chunk: choose a chunk_size (--chunk-size)"
                if dynamic
                else f"train the model with model.{name}.encoder.init_args.chunk_size, in hidden "
                "frames, or with dynamic_chunk"
            )
        )
    left = own.left if own else getattr(encoder, "left_context", -1)
    left = left if left_context is None else left_context
    chunks = Chunks(size, left)
    try:
        encoder.init_state(1, chunks)
    except NotImplementedError as error:
        raise ConfigError(
            f"{name}.encoder: {error}; train a ConformerEncoder, BranchformerEncoder or "
            "EBranchformerEncoder with chunk_size"
        ) from error
    return chunks
