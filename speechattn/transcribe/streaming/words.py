"""Tokens that come one after another to words, each handed out as soon as it is complete."""

import unicodedata
from collections.abc import Sequence

from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding.alignment import TokenTime
from speechattn.decoding.ctc import TokenSpan
from speechattn.decoding.streaming.base import StreamTokens
from speechattn.transcribe.spans import word_spans
from speechattn.transcribe.transcript import Span
from speechattn.units import SPACE_TOKEN, WORD_START, is_ideograph


class WordAssembler:
    """The words of one utterance.

    A word is complete when the token after it begins another, or after a silence.

    Args:
        tokenizer: of the model.
        frame_shift: seconds a frame.
        silence: frames without a token after which a word is complete.
        first: frame of the stream at which the utterance begins.
    """

    def __init__(self, tokenizer: Tokenizer, frame_shift: float, silence: int, first: int = 0):
        self.tokenizer = tokenizer
        self.frame_shift = frame_shift
        self.silence = silence
        self.first = first
        self._held: list[TokenSpan] = []  # stable tokens of a word that may go on
        self._last: list[int] = []  # the token before them
        self._end = 0  # frame at which it ended
        # Where there is no punctuation, nothing can join an ideograph.
        self._marks = any(map(_is_mark, tokenizer.tokens))

    def update(self, found: StreamTokens, frames: int) -> tuple[list[Span], list[Span], str]:
        """Go on.

        Args:
            found: by the search.
            frames: of the utterance so far.

        Returns:
            Words that are complete now, words that may change, and the text of the first.
        """
        sure = [*self._held, *found.final]
        stable = len(sure)
        tokens = [*sure, *found.pending]
        known = stable + found.certain
        end = tokens[-1].end if tokens else frames
        if not found.pending and frames - end >= self.silence:
            complete = stable
        else:
            complete = max((i for i in range(1, known) if self._begins(tokens, i)), default=0)
            if not complete or complete < known:
                alone = known and self._alone(tokens[known - 1])
                complete = known if alone else complete
        complete = min(complete, stable)  # a token that lasts on is handed out when it has ended
        return self._hand_out(tokens, complete, stable)

    def finish(self, tokens: Sequence[TokenSpan]) -> tuple[list[Span], str]:
        """Return what is left, with the last tokens of the search."""
        tokens = [*self._held, *tokens]
        final, _, text = self._hand_out(tokens, len(tokens), len(tokens))
        return final, text

    def quiet(self, found: StreamTokens, frames: int) -> int:
        """Return the frames since the last token, pending or not; 0 where there is none."""
        tokens = [*self._held, *found.pending]
        end = tokens[-1].end if tokens else self._end
        return frames - end if end else 0

    def _hand_out(
        self, tokens: list[TokenSpan], complete: int, stable: int
    ) -> tuple[list[Span], list[Span], str]:
        ids = [t.token for t in tokens[:complete]]
        # A text is not the texts of its parts: a space at the beginning is left out.
        text = self.tokenizer.decode(self._last + ids)[len(self.tokenizer.decode(self._last)) :]
        if ids:
            self._last = ids[-1:]
            self._end = tokens[complete - 1].end
        self._held = tokens[complete:stable]
        return self._words(tokens[:complete]), self._words(tokens[complete:]), text

    def _words(self, tokens: Sequence[TokenSpan]) -> list[Span]:
        shift = self.frame_shift
        times = [
            TokenTime(
                t.token, (self.first + t.start) * shift, (self.first + t.end) * shift, t.score
            )
            for t in tokens
        ]
        return word_spans(times, self.tokenizer.tokens)

    def _begins(self, tokens: Sequence[TokenSpan], i: int) -> bool:
        """Return whether the i-th token ends the word before it, i at least 1."""
        piece = self.tokenizer.tokens[tokens[i].token]
        before = self.tokenizer.tokens[tokens[i - 1].token]
        if (
            piece == SPACE_TOKEN
            or before == SPACE_TOKEN
            or _separates(piece[0])
            or _separates(before[-1])
        ):
            return True
        if is_ideograph(piece[0]):
            return True
        return is_ideograph(before[-1]) and not _is_mark(piece[0])

    def _alone(self, token: TokenSpan) -> bool:
        """Return whether nothing can join the word that ends with a token."""
        return not self._marks and is_ideograph(self.tokenizer.tokens[token.token][-1])


def _separates(character: str) -> bool:
    return character == WORD_START or character.isspace()


def _is_mark(piece: str) -> bool:
    return len(piece) == 1 and unicodedata.category(piece)[0] in "PM"
