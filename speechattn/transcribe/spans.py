"""Tokens in time to the spans of a transcript."""

from collections.abc import Sequence

import numpy as np

from speechattn.decoding import TokenTime, word_times
from speechattn.transcribe.transcript import Span
from speechattn.units import UNK_MARK, UNK_TOKEN


def token_spans(times: Sequence[TokenTime], pieces: Sequence[str]) -> list[Span]:
    """Return tokens as the tokenizer writes them.

    Args:
        times: of the tokens.
        pieces: the tokenizer's `tokens`.
    """
    return [Span(pieces[t.token], t.start, t.end, t.confidence) for t in times]


def word_spans(times: Sequence[TokenTime], pieces: Sequence[str]) -> list[Span]:
    """Return words as the text writes them; arguments as of `token_spans`."""
    return [
        Span(w.word.replace(UNK_TOKEN, UNK_MARK), w.start, w.end, w.confidence)
        for w in word_times(times, pieces)
    ]


def mean_confidence(tokens: Sequence[Span]) -> float:
    """Return the mean confidence of tokens, 0 of none."""
    return float(np.mean([t.confidence for t in tokens])) if tokens else 0.0
