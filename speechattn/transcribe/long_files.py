"""Files of any length: recognised in overlapping windows, joined on their time stamps.

A file is read in a stream and decoded a few windows at a time, so that memory does not grow with
its length. Windows start at whole hidden frames: what a model sees of a moment is then the same
frames in both windows, apart from what is around them.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from speechattn.data.batches.batch import Item, collate
from speechattn.data.long_form import LongFormOptions
from speechattn.data.media import Rolling, fit_audio
from speechattn.data.reader import MediaSource
from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding import TokenTime
from speechattn.model.ensemble import Ensemble
from speechattn.model.speech_model import SpeechModel
from speechattn.transcribe.joining import Joiner
from speechattn.transcribe.recogniser import Recogniser
from speechattn.transcribe.silence import quiet_place
from speechattn.transcribe.transcript import Span, Transcript
from speechattn.units import SPACE_TOKEN

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """A part of a file, ready for a batch.

    Attributes:
        item: its sound and crops.
        start: seconds from the start of the file.
        end: seconds.
        last: whether the file ends with it.
    """

    item: Item
    start: float
    end: float
    last: bool


def transcribe_long(
    recogniser: Recogniser, media: MediaSource, options: LongFormOptions | None = None
) -> Transcript:
    """Transcribe a source of any length.

    Args:
        recogniser: the model and its search.
        media: what is read.
        options: of the windows.

    Returns:
        Times are of the whole file; a file that fits into one window gives what it gives there.
        Words come from one window each, see `joining`.

    Raises:
        MediaError: the file cannot be used.
    """
    options = options or LongFormOptions()
    tokenizer = recogniser.tokenizer
    joiner = Joiner(space=SPACE_TOKEN in tokenizer.tokens)
    end = 0.0
    for batch in _batches(windows(recogniser, media, options), options.batch_size):
        found = recogniser.recognise(collate([window.item for window in batch]))
        if batch[0].last and batch[0].start == 0:
            return replace(found[0], id=media.name)
        for window, transcript in zip(batch, found, strict=True):
            tokens = transcript.tokens or _spread(tokenizer, transcript)
            joiner.add(_shifted(tokens, window.start), window.start, window.end)
            end = window.end
        logger.debug("%s: %.0f s done", media.name, end)
    ids = {piece: i for i, piece in enumerate(tokenizer.tokens)}
    times = [TokenTime(ids[t.text], t.start, t.end, t.confidence) for t in joiner.tokens()]
    text = tokenizer.decode([time.token for time in times])
    return recogniser.timed_transcript(media.name, text, times, end)


def _batches(found: Iterator[Window], size: int) -> Iterator[list[Window]]:
    batch = []
    for window in found:
        batch.append(window)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _shifted(tokens: list[Span], seconds: float) -> list[Span]:
    return [replace(t, start=t.start + seconds, end=t.end + seconds) for t in tokens]


def _spread(tokenizer: Tokenizer, transcript: Transcript) -> list[Span]:
    """Return the tokens of a text that CTC has no times for, one after the other at equal
    distances.
    """
    ids = tokenizer.encode(transcript.text)
    step = transcript.duration / max(1, len(ids))
    return [Span(tokenizer.tokens[k], i * step, (i + 1) * step, 0.0) for i, k in enumerate(ids)]


# ----------------------------------------------------------------------------------- windows


def windows(
    recogniser: Recogniser, media: MediaSource, options: LongFormOptions
) -> Iterator[Window]:
    """Yield the windows of a file, in order.

    The last one is as long as the others, as far as the file is: it starts earlier, not shorter.

    Raises:
        MediaError: the file cannot be used.
    """
    source = _Source(recogniser, media)
    step = source.step
    size = max(2, round(options.window_seconds / step))
    overlap = min(max(1, round(options.overlap_seconds / step)), size // 2)
    start = before = 0
    shared = False  # whether the window starts within the one before it
    while True:
        end = source.end(start + size)
        if end is not None:
            if shared:
                start = max(before, math.ceil(end / step) - size)
            yield source.window(start, None, end)
            return
        stop, follow, shared = start + size, start + size - overlap, True
        if options.at_silence and source.uses_audio:
            quiet = source.quiet(start, stop, follow, options.silence_seconds)
            if quiet is not None:
                stop = follow = quiet
                shared = False
        yield source.window(start, stop, stop * step)
        before, start = start, follow
        source.forget(before)


class _Source:
    """A file as the model takes it, in steps on which hidden frames and pictures begin."""

    def __init__(self, recogniser: Recogniser, media: MediaSource):
        model = recogniser.model
        self.name = media.name
        self.step = common_step(model)
        self.uses_audio = "audio" in model.modalities
        self._sample_rate, self._fps = _exact(model.sample_rate), _exact(model.video_fps)
        self._crop = recogniser.reader.center
        self._video = self._audio = None
        if "video" in model.modalities:
            self._video = Rolling(media.crops())
        if self.uses_audio:
            self._audio = Rolling(media.sound())
        # Where there are pictures, they say how long the file is.
        self._clock = (
            (self._video, self._fps) if self._video is not None
            else (self._audio, self._sample_rate)
        )  # fmt: skip

    def end(self, stop: int) -> Fraction | None:
        """Return the seconds of the file if it ends not after step `stop`, else None."""
        stream, rate = self._clock
        last = round(stop * self.step * rate)
        stream.fill(last + 1)
        return stream.end / rate if stream.ended and stream.end <= last else None

    def window(self, start: int, stop: int | None, end: Fraction) -> Window:
        """Cut from step `start` to `stop`, or to the end of the file; `end` is that in seconds."""
        begin = start * self.step
        audio = video = None
        if self._video is not None:
            video = self._cut(self._video, self._fps, begin, end)
        if self._audio is not None:
            audio = self._cut(self._audio, self._sample_rate, begin, end)
            if video is not None:
                audio = fit_audio(audio, round(len(video) / self._fps * self._sample_rate))
        if video is not None:
            video = self._crop(video)
        name = f"{self.name} from {float(begin):g} s"
        return Window(Item(name, "", [], audio, video), float(begin), float(end), stop is None)

    def _cut(self, stream: Rolling, rate: Fraction, begin: Fraction, end: Fraction) -> np.ndarray:
        return stream.get(round(begin * rate), round(end * rate))

    def quiet(self, start: int, stop: int, earliest: int, seconds: float) -> int | None:
        """Return the step in the middle of the longest quiet stretch after `earliest`, if there is
        one.
        """
        sound = self._cut(self._audio, self._sample_rate, start * self.step, stop * self.step)
        rate = float(self._sample_rate)
        at = quiet_place(sound, rate, float((earliest - start) * self.step), seconds)
        return None if at is None else start + max(1, round(at / self.step))

    def forget(self, before: int) -> None:
        """Forget what lies before a step."""
        for stream, rate in ((self._video, self._fps), (self._audio, self._sample_rate)):
            if stream is not None:
                stream.forget(round(before * self.step * rate))


def common_step(model: SpeechModel | Ensemble) -> Fraction:
    """Return the shortest time of a whole number of hidden frames, pictures and samples."""
    models = model.models.values() if isinstance(model, Ensemble) else [model]
    times = [_exact(m.frame_shift) for m in models]
    if "video" in model.modalities:
        times.append(1 / _exact(model.video_fps))
    if "audio" in model.modalities:
        times.append(1 / _exact(model.sample_rate))
    # Of fractions in lowest terms.
    return Fraction(
        math.lcm(*(t.numerator for t in times)), math.gcd(*(t.denominator for t in times))
    )


def _exact(value: float) -> Fraction:
    return Fraction(value).limit_denominator(10000)
