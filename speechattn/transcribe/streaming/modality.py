"""One modality of a model on a stream, by the chunks of its encoder.

Legend: T hidden frames, D width of a hidden frame, N inputs (samples or pictures).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from speechattn.errors import ConfigError
from speechattn.frontends.base import FrontendState
from speechattn.model.speech_model import Modality, SpeechModel, Stream


class ModalityStream:
    """One modality of a model, by chunks.

    Args:
        model: that it belongs to.
        name: 'audio' or 'video'.
        chunk_size: as of `StreamOptions`.
        left_context: the same.

    Raises:
        ConfigError: the frontend or the encoder cannot stream.

    Attributes:
        rate: inputs a second.
        received: inputs that came so far.
        consumed: inputs that were read so far.
        chunks: the frames visible to each hidden frame.
        hidden: (1, T, D), frames that nobody took yet.
    """

    def __init__(
        self,
        model: SpeechModel,
        name: Modality,
        chunk_size: int | None = None,
        left_context: int | None = None,
    ):
        stream = cast(Stream, model.streams[name])
        self.frontend, self.encoder = stream.frontend, stream.encoder
        self.rate = model.sample_rate if name == "audio" else model.video_fps
        with _named(f"{name}.frontend"):
            self.reach = self.frontend.reach()
        with _named(f"{name}.encoder"):
            self.chunks = self.encoder.stream_chunks(chunk_size, left_context)
            self.state = self.encoder.init_state(1, self.chunks)
        self.frontend_state = FrontendState()
        self.head = partial(model.stream_log_probs, name)
        self.consumed = self.received = 0
        self._chunks = 0
        self._pieces: list[Tensor] = []
        weight = next(self.encoder.parameters())
        self.device = weight.device
        self.hidden = weight.new_zeros(1, 0, self.encoder.output_size)

    def push(self, piece: Tensor) -> None:
        """Add the next inputs (n, ...)."""
        if len(piece):
            self._pieces.append(piece)
            self.received += len(piece)

    @property
    def needed(self) -> int:
        """Return the inputs, from the first, that the next chunk needs."""
        frames = (self._chunks + 1) * self.chunks.size
        return self.reach.inputs(self.encoder.features_needed(frames))

    def advance(self, upto: int, last: bool = False) -> None:
        """Read on up to an input, for one chunk, or for all that is left where it is the last."""
        x = self._take(upto - self.consumed).to(self.device)[None]
        features, self.frontend_state = self.frontend.step(x, self.frontend_state, last)
        hidden, self.state = self.encoder.step(features, self.state, self.head, last)
        self.hidden = torch.cat([self.hidden, hidden], dim=1)
        self._chunks += 1

    def restart(self) -> None:
        """Forget all chunks; what is read next is the beginning of an utterance."""
        # The input layer has read features of the next chunk already: it keeps them.
        self.state = self.encoder.restart(self.state)

    def _take(self, count: int) -> Tensor:
        """Take so many inputs from the pieces."""
        parts, got = [self._pieces[0][:0]], 0
        while got < count:
            piece = self._pieces[0]
            parts.append(piece[: count - got])
            got += len(parts[-1])
            self._pieces[0] = piece[len(parts[-1]) :]
            if not len(self._pieces[0]) and len(self._pieces) > 1:
                self._pieces.pop(0)
        self.consumed += got
        return torch.cat(parts)

    def size(self) -> int:
        """Count the numbers in memory."""
        return _size([self.frontend_state, self.state, self.hidden, self._pieces])


def _size(state: Any) -> int:
    """Count the numbers in tensors, sequences of them, or dataclasses of them."""
    if isinstance(state, Tensor):
        return state.numel()
    if isinstance(state, tuple | list):
        return sum(map(_size, state))
    return sum(map(_size, vars(state).values())) if hasattr(state, "__dict__") else 0


@contextmanager
def _named(part: str) -> Iterator[None]:
    """Say in an error which part of the model cannot stream."""
    try:
        yield
    except (ConfigError, NotImplementedError) as error:
        raise ConfigError(f"{part} cannot stream: {error}") from error
