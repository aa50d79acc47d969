"""N-gram models of words, for graphs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from speechattn.data.tokenizers import Tokenizer
from speechattn.lm.ngram_training import count_ngrams, kneser_ney, write_arpa
from speechattn.lm.texts import TokenLines
from speechattn.units import BLANK_TOKEN, SOS_EOS_TOKEN, UNK_TOKEN, is_ideograph


def split_words(text: str, segmented: bool = False) -> list[str]:
    """Split a sentence into words: at spaces, and around each ideograph unless it is `segmented`.

    Then spaces separate words of ideographs too, which stay whole.
    """
    if not segmented:
        text = "".join(f" {c} " if is_ideograph(c) else c for c in text)
    return text.split()


class _Words(Tokenizer):
    """Words as units; any others are <unk>."""

    kind = "word"

    def __init__(self, words: Sequence[str]):
        super().__init__([BLANK_TOKEN, UNK_TOKEN, *words, SOS_EOS_TOKEN])
        self._number = {word: i for i, word in enumerate(self.tokens)}

    def encode(self, text: str) -> list[int]:
        return [self._number.get(word, self.unk_id) for word in text.split()]

    @classmethod
    def _open(cls, folder: Path, kind: str, tokens: list[str]) -> Self:
        return cls(tokens[2:-1])

    def _join(self, units: list[str]) -> str:
        return " ".join(units)


def train_word_ngram(
    sentences: Iterable[Sequence[str]],
    words: Sequence[str],
    output: str | Path,
    *,
    order: int = 3,
    min_count: int = 1,
) -> list[int]:
    """Count an n-gram model of words into an ARPA file.

    Args:
        sentences: their words.
        words: those of the lexicon; others count as `<unk>`.
        output: the file.
        order: words of the longest n-grams.
        min_count: n-grams of three words and more that occur less often are dropped.

    Returns:
        How many n-grams of each order were written.
    """
    units = _Words(words)
    lines = TokenLines.of([" ".join(sentence) for sentence in sentences], units)
    ngrams = count_ngrams(lines, order, units.vocab_size)
    estimates = kneser_ney(ngrams, units.vocab_size, min_count)
    return write_arpa(output, units.tokens, ngrams, estimates)
