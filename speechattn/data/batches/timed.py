"""When the tokens of an utterance were said, from the word alignments of its cut."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from speechattn.data.batches.batch import Item
from speechattn.data.tokenizers import Tokenizer
from speechattn.units import SPACE_TOKEN

if TYPE_CHECKING:
    from lhotse.cut import Cut

Word = tuple[str, float, float]


def word_alignment(cut: "Cut") -> list[Word] | None:
    """Return the words of a cut with their starts and ends, in seconds from its own start.

    Lhotse's `supervision.alignment["word"]`, in which corpora with alignments have them; None if a
    supervision has none.
    """
    alignments = [supervision.alignment or {} for supervision in cut.supervisions]
    if not all("word" in alignment for alignment in alignments):
        return None
    return [(w.symbol, w.start, w.end) for alignment in alignments for w in alignment["word"]]


def token_times(
    cuts: "Sequence[Cut]", seconds: Sequence[float], tokens: Sequence[int], tokenizer: Tokenizer
) -> np.ndarray | None:
    """Compute the times of the tokens of cuts that follow each other.

    `seconds` is the length of each cut, `tokens` the U ids of all.

    Returns:
        (U, 2) seconds in which each token was said, that of its word; None where a cut has no
        alignment, or one of other words than its text.
    """
    words, at = [], 0.0
    for cut, length in zip(cuts, seconds, strict=True):
        alignment = word_alignment(cut)
        if alignment is None:
            return None
        words += [(word, at + start, at + end) for word, start, end in alignment]
        at += length
    times, last = [], 0.0
    for word, start, end in words:
        place = len(times)
        if place and place < len(tokens) and tokenizer.tokens[tokens[place]] == SPACE_TOKEN:
            times.append((last, start))
            place += 1
        pieces = tokenizer.encode(word)
        if list(tokens[place : place + len(pieces)]) != pieces:
            return None
        times += [(start, end)] * len(pieces)
        last = end
    if len(times) != len(tokens):
        return None
    return np.asarray(times, dtype=np.float32).reshape(-1, 2)


def trim(
    item: Item,
    start: float,
    stop: float,
    tokenizer: Tokenizer,
    *,
    sample_rate: int,
    fps: float | None = None,
) -> None:
    """Cut an utterance to what is between two moments, and its text to the words said there.

    The item is changed in place. A word belongs where its middle is. Without times, or without a
    word between, all stays. With `fps`, of its crops, both moments are at the start of a picture.
    """
    if item.times is None:
        return
    if fps is not None:
        start, stop = round(start * fps) / fps, round(stop * fps) / fps
    middle = item.times.mean(1)
    kept = np.flatnonzero((middle >= start) & (middle < stop))
    spaces = [i for i in kept.tolist() if tokenizer.tokens[item.tokens[i]] == SPACE_TOKEN]
    kept = [i for i in kept.tolist() if i not in (kept[0], kept[-1]) or i not in spaces]
    if not kept:
        return
    item.tokens = [item.tokens[i] for i in kept]
    item.text = tokenizer.decode(item.tokens)
    item.times = (item.times[kept] - start).clip(0.0, stop - start).astype(np.float32)
    if item.audio is not None:
        item.audio = item.audio[round(start * sample_rate) : round(stop * sample_rate)]
    if item.video is not None:
        item.video = item.video[round(start * fps) : round(stop * fps)]
