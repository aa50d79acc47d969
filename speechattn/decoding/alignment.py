"""When tokens and words were said, from the CTC alignment."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from speechattn.decoding.ctc import AlignmentError, ctc_forced_align
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.model.output import ModelOutput
from speechattn.units import SPACE_TOKEN, WORD_START, is_ideograph


@dataclass(frozen=True)
class TokenTime:
    """One token in time.

    Attributes:
        token: id.
        start: seconds.
        end: seconds.
        confidence: mean posterior of the token over its frames, 0..1.
    """

    token: int
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class WordTime:
    """One word, or one Chinese character, in time.

    Attributes:
        word: text without spaces.
        start: seconds, of its first token.
        end: seconds, of its last token.
        confidence: mean of its tokens' confidences, 0..1.
    """

    word: str
    start: float
    end: float
    confidence: float


def token_times(log_probs: Tensor, tokens: list[int], frame_shift: float) -> list[TokenTime]:
    """Return the time of each token on the most probable CTC path.

    CTC emits a token for as long as it is sure of it, which is often one frame: a start is where
    the model recognised the token, an end is not where the sound stopped.

    Args:
        log_probs: (T, V), one utterance without padding.
        tokens: U ids, none of them blank.
        frame_shift: seconds a frame.

    Raises:
        AlignmentError: too few frames for so many tokens.
    """
    return [
        TokenTime(span.token, span.start * frame_shift, span.end * frame_shift, span.score)
        for span in ctc_forced_align(log_probs, tokens)
    ]


def surest_times(
    outputs: Sequence[ModelOutput], row: int, tokens: list[int]
) -> tuple[ModelOutput, list[TokenTime]]:
    """Return the model that is surest of these tokens, and its `token_times` of one utterance.

    Raises:
        AlignmentError: too few frames for so many tokens, in every model.
    """
    found, errors = [], []
    for output in outputs:
        try:
            log_probs = output.log_probs[row, : int(output.lengths[row])]
            found.append((output, token_times(log_probs, tokens, output.frame_shift)))
        except AlignmentError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return max(found, key=lambda pair: sum(time.confidence for time in pair[1]))


def hypothesis_times(
    outputs: Sequence[ModelOutput], row: int, found: Hypothesis
) -> list[TokenTime]:
    """Return when the tokens of a hypothesis were said.

    A search that knows the frame of each token, or how sure it is, says so. For others the CTC
    alignment does, see `surest_times`.

    Raises:
        AlignmentError: too few frames for so many tokens, in every model.
    """
    used, times = surest_times(outputs, row, found.tokens)
    if found.frames is not None:
        shift = used.frame_shift
        times = [
            replace(time, start=frame * shift, end=(frame + 1) * shift)
            for time, frame in zip(times, found.frames, strict=True)
        ]
    if found.confidences is not None:
        times = [
            replace(time, confidence=sure)
            for time, sure in zip(times, found.confidences, strict=True)
        ]
    return times


def word_times(times: Sequence[TokenTime], pieces: Sequence[str]) -> list[WordTime]:
    """Group tokens into words.

    A word starts at `<space>`, at a piece that starts with SentencePiece's mark, and at each CJK
    ideograph or kana, which is a word of its own; what else stands together stays together, and
    punctuation stays with the word before it. A piece of several words shares its time between
    its characters evenly.

    Args:
        times: from `token_times`.
        pieces: text of each id, the tokenizer's `tokens`.
    """
    words: list[_Word] = []
    open_word = False  # whether the next character may continue the last word
    for time in times:
        piece = pieces[time.token]
        if piece == SPACE_TOKEN:
            open_word = False
            continue
        if piece.startswith("<") and piece.endswith(">") and len(piece) > 2:
            characters = [piece]  # <unk> is one symbol
        else:
            characters = list(piece)
        spoken = sum(not _separates(character) for character in characters)
        step = (time.end - time.start) / max(1, spoken)
        i = -1  # which of the spoken characters
        for character in characters:
            if _separates(character):
                open_word = False
                continue
            i += 1
            alone = is_ideograph(character)
            mark = len(character) == 1 and unicodedata.category(character)[0] in "PM"
            after_alone = bool(words) and is_ideograph(words[-1].text[0])
            if not open_word or alone or (after_alone and not mark):
                start = time.start + i * step
                words.append(_Word("", start, start, {}))
            words[-1].text += character
            words[-1].end = time.start + (i + 1) * step
            words[-1].confidences[id(time)] = time.confidence
            open_word = True
    return [
        WordTime(w.text, w.start, w.end, sum(w.confidences.values()) / len(w.confidences))
        for w in words
    ]


def _separates(character: str) -> bool:
    """Return whether a character only says that a word ends here, and takes no time."""
    return character == WORD_START or character.isspace()


@dataclass
class _Word:
    text: str
    start: float
    end: float
    confidences: dict[int, float]  # of the tokens in it, each once
