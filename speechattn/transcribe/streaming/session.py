"""Recognition while sound or video arrives: pieces in, words out.

Each stream of a model reads its input by the chunks of its encoder. What a chunk needs is known
beforehand, and nothing is computed before all of it is there: so what comes out depends on the
input alone, not on the pieces in which it came, and is what the model makes of the whole input with
the same chunks. The memory of it is that of one chunk and what the encoder sees to the left of it.

Legend: T hidden frames, F width of a feature, D width of a hidden frame, N inputs (samples or
pictures).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from speechattn.data.reader import Piece
from speechattn.decoding.streaming.base import StreamLimits
from speechattn.errors import ConfigError
from speechattn.model.speech_model import SpeechModel
from speechattn.transcribe.recogniser import Recogniser
from speechattn.transcribe.streaming.modality import ModalityStream
from speechattn.transcribe.streaming.words import WordAssembler
from speechattn.transcribe.transcript import Span


@dataclass(frozen=True)
class StreamOptions:
    """How to recognise a stream. How to search, the search says.

    Attributes:
        chunk_size: hidden frames that see each other; None for the encoder's own. Others are for
            encoders that were trained with `dynamic_chunk`.
        left_context: hidden frames that a chunk sees before it, -1 for all, which takes ever more
            memory; None for the encoder's own.
        silence_seconds: without a token, after which a word is complete; before that it is as soon
            as the next one begins.
        endpoint_seconds: without a token, after which an utterance is over: encoder and search
            start anew, as with another file; 0 for never. A model that was trained on sentences
            needs it.
        margin: `CtcBeamSearch` is certain of a token that all hypotheses have whose scores are not
            so much below the best, in natural log; inf for all hypotheses of the beam.
        settle_seconds: `CtcBeamSearch` and `GraphSearch` are sure of a token, too, that the best
            hypothesis has had for so long; inf for never, which is exact: the search is that of the
            whole input (the beam with margin inf, but then it is hardly ever sure before the end).
            None for 0.5 in a beam of CTC alone, for 2 where language models or hot words may
            change its mind, and for inf over a graph.
        pending_seconds: `CtcBeamSearch` is not unsure of more than this.
    """

    chunk_size: int | None = None
    left_context: int | None = None
    silence_seconds: float = 0.4
    endpoint_seconds: float = 0.0
    margin: float = 10.0
    settle_seconds: float | None = None
    pending_seconds: float = 8.0

    def __post_init__(self) -> None:
        for name in ("silence_seconds", "settle_seconds", "pending_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} has to be above 0, not {value:g}")
        if self.endpoint_seconds < 0 or self.margin < 0:
            raise ConfigError("endpoint_seconds and margin have to be 0 or more")
        if 0 < self.endpoint_seconds < self.silence_seconds:
            raise ConfigError(
                f"endpoint_seconds {self.endpoint_seconds:g} is below silence_seconds "
                f"{self.silence_seconds:g}: an utterance does not end within a word"
            )


@dataclass(frozen=True)
class StreamUpdate:
    """What one more chunk said.

    Attributes:
        final: words that are complete since the last update; they do not change any more.
        partial: words behind them, as they are now.
        text: of the tokens of `final`; all texts of an utterance make up its text.
        seconds: of input that this took: as soon as they were there, this could be known.
        endpoint: the utterance is over with this, and what comes next is another.
    """

    final: list[Span] = field(default_factory=list)
    partial: list[Span] = field(default_factory=list)
    text: str = ""
    seconds: float = 0.0
    endpoint: bool = False


class StreamingSession:
    """One live source of sound, of lips or of both.

    Args:
        recogniser: with a model of chunks, and a search that streams.
        options: how to stream.

    Raises:
        ConfigError: the model or the search needs whole utterances.

    Attributes:
        frames: hidden frames that were searched.
    """

    def __init__(self, recogniser: Recogniser, options: StreamOptions | None = None):
        self.options = options or StreamOptions()
        if not isinstance(recogniser.model, SpeechModel):
            raise ConfigError(
                f"{type(recogniser.model).__name__} cannot stream: give the directory of one "
                "model, neither an ensemble nor an exported one"
            )
        recogniser.search.check_stream()
        self.model = recogniser.model
        self.recogniser = recogniser
        self.limits = StreamLimits(
            frame_shift=self.model.frame_shift,
            margin=self.options.margin,
            settle_seconds=self.options.settle_seconds,
            pending_seconds=self.options.pending_seconds,
        )
        chunks = self.options.chunk_size, self.options.left_context
        self.streams: dict[str, ModalityStream] = {
            name: ModalityStream(self.model, name, *chunks) for name in self.model.modalities
        }
        self.frames = 0
        self._begin()

    def _begin(self) -> None:
        """Start another utterance."""
        r = self.recogniser
        self.search = r.search.start_stream(r.model, r.device, r.fusion, self.limits)
        silence = self.limits.frames(self.options.silence_seconds)
        self.words = WordAssembler(r.tokenizer, self.model.frame_shift, silence, self.frames)
        self._begun = self.frames

    @property
    def seconds(self) -> float:
        """Return the seconds of input that were read."""
        return max(stream.consumed / stream.rate for stream in self.streams.values())

    def size(self) -> int:
        """Return the numbers in memory, which an endless stream must not let grow."""
        return self.search.size() + sum(stream.size() for stream in self.streams.values())

    @torch.inference_mode()
    def accept(self, piece: Piece) -> list[StreamUpdate]:
        """Read the next piece; see `Transcriber.stream`.

        Returns:
            An update for each chunk that is complete now.
        """
        for name, part in self.recogniser.reader.split(piece):
            self.streams[name].push(part)
        updates = []
        while self._advance():
            updates += self._read()
        return updates

    @torch.inference_mode()
    def finish(self) -> StreamUpdate:
        """End the input and return the last words."""
        if len(self.streams) == 2:
            # Sound ends with the lips, as that of files does.
            audio = self.streams["audio"]
            audio.push(torch.zeros(max(self._limit("audio", True) - audio.received, 0)))
        for name, stream in self.streams.items():
            if stream.received:
                stream.advance(self._limit(name, True), last=True)
        updates = self._read()
        final, text = self.words.finish(self.search.finish())
        final = [word for update in updates for word in update.final] + final
        text = "".join(update.text for update in updates) + text
        return StreamUpdate(final, [], text, self.seconds, endpoint=True)

    def _limit(self, name: str, last: bool = False) -> int:
        """Return the inputs of a stream that may be read: sound waits for the lips."""
        stream = self.streams[name]
        if name == "video" or len(self.streams) == 1:
            return stream.received
        video = self.streams["video"]
        seen = round(video.received / video.rate * stream.rate)
        return seen if last else min(seen, stream.received)

    def _advance(self) -> bool:
        """Advance the first stream that has a chunk by it."""
        for name, stream in self.streams.items():
            if stream.needed <= self._limit(name):
                stream.advance(stream.needed)
                return True
        return False

    def _hidden(self) -> Tensor:
        """Take the hidden frames that all streams have, (1, T, D)."""
        frames = min(stream.hidden.shape[1] for stream in self.streams.values())
        hidden = {}
        for name, stream in self.streams.items():
            hidden[name], stream.hidden = stream.hidden[:, :frames], stream.hidden[:, frames:]
        if self.model.fusion is None or not frames:
            return next(iter(hidden.values()))
        lengths = torch.tensor([frames], device=hidden["audio"].device)
        fused: Tensor = self.model.fusion(hidden["audio"], lengths, hidden["video"], lengths)[0]
        return fused

    def _read(self) -> list[StreamUpdate]:
        hidden = self._hidden()
        if not hidden.shape[1]:
            return []
        found = self.search.accept(self.model.ctc_log_probs(hidden)[0])
        self.frames += hidden.shape[1]
        frames = self.frames - self._begun
        final, partial, text = self.words.update(found, frames)
        if not self._ends(self.words.quiet(found, frames)):
            return [StreamUpdate(final, partial, text, self.seconds)]
        last, rest = self.words.finish(self.search.finish())
        self._begin()
        for stream in self.streams.values():
            stream.restart()
        return [StreamUpdate(final + last, [], text + rest, self.seconds, endpoint=True)]

    def _ends(self, quiet: int) -> bool:
        """Return whether the utterance is over."""
        silence = self.options.endpoint_seconds
        return silence > 0 and quiet >= self.limits.frames(silence)
