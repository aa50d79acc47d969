"""Pronunciation (or spelling) lexicons: the words of a graph and the units of each."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError
from speechattn.units import SPACE_TOKEN

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lexicon:
    """Words and their units; a word may have several entries.

    Attributes:
        words: (W,) word number i + 1 of a graph is words[i].
        entries: the number of a word, from 1, and its units.
        separator: the unit of the space between words if the model has one (never used beside
            ideographs); else None.
    """

    words: tuple[str, ...]
    entries: tuple[tuple[int, tuple[int, ...]], ...]
    separator: int | None = None

    def __post_init__(self) -> None:
        if not self.entries:
            raise ConfigError("lexicon: no word can be spelled with the model's units")
        if twice := [word for word, n in Counter(self.words).items() if n > 1]:
            raise ConfigError(f"lexicon: {twice[0]!r} is listed more than once")

    @classmethod
    def spelled(cls, words: Iterable[str], tokenizer: Tokenizer) -> "Lexicon":
        """Spell words with the model's tokenizer; leave out duplicates.

        Words that it cannot spell are left out with a warning.
        """
        kept, entries, lost = [], [], []
        for word in dict.fromkeys(words):
            units = tokenizer.encode(word)
            if not units or tokenizer.unk_id in units:
                lost.append(word)
                continue
            kept.append(word)
            entries.append((len(kept), tuple(units)))
        if lost:
            counts = (len(lost), len(lost) + len(kept))
            logger.warning(
                "lexicon: left out %d of %d words with characters that the model has no unit for, "
                "such as %s",
                *counts,
                " ".join(lost[:5]),
            )
        return cls(tuple(kept), tuple(entries), _separator(tokenizer))

    @classmethod
    def of_units(cls, tokenizer: Tokenizer) -> "Lexicon":
        """Make every unit a word of its own, including the space."""
        units = [u for u in range(1, tokenizer.vocab_size - 1) if u != tokenizer.unk_id]
        words = tuple(tokenizer.tokens[unit] for unit in units)
        return cls(words, tuple((i, (unit,)) for i, unit in enumerate(units, 1)))

    @classmethod
    def read(cls, path: str | Path, tokenizer: Tokenizer) -> "Lexicon":
        """Read lines of `word unit unit ...`, as in Kaldi's and icefall's `lexicon.txt`.

        Raises:
            ConfigError: the file cannot be read, or names a unit that the model does not have.
        """
        number = {token: i for i, token in enumerate(tokenizer.tokens)}
        words: dict[str, int] = {}
        entries = []
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({error})") from error
        for row, line in enumerate(lines, 1):
            word, *units = line.split() or [""]
            if not word:
                continue
            if not units:
                raise ConfigError(f"{path}, line {row}: {word!r} has no units")
            if unknown := [unit for unit in units if unit not in number]:
                raise ConfigError(
                    f"{path}, line {row}: the model has no unit {unknown[0]!r}; its tokens.txt "
                    "lists the units"
                )
            entry = (words.setdefault(word, len(words) + 1), tuple(number[u] for u in units))
            entries.append(entry)
        return cls(tuple(words), tuple(dict.fromkeys(entries)), _separator(tokenizer))

    def disambiguated(self) -> list[tuple[int, tuple[int, ...], int]]:
        """Return entries, each with the number of its disambiguation symbol, from 1; 0 for none.

        Entries that share their units with others, or are a prefix of others, need one for the
        graph to be determinizable (Mohri et al. 2002, section 3.1).
        """
        spellings = Counter(units for _, units in self.entries)
        begun = {units[:n] for units in spellings for n in range(1, len(units))}
        used: Counter[tuple[int, ...]] = Counter()
        found = []
        for word, units in self.entries:
            symbol = 0
            if spellings[units] > 1 or units in begun:
                used[units] += 1
                symbol = used[units]
            found.append((word, units, symbol))
        return found


def _separator(tokenizer: Tokenizer) -> int | None:
    return tokenizer.tokens.index(SPACE_TOKEN) if SPACE_TOKEN in tokenizer.tokens else None


def most_frequent(sentences: Iterable[Sequence[str]], count: int) -> list[str]:
    """Return the `count` most frequent words of sentences, most frequent first."""
    counts = Counter(word for sentence in sentences for word in sentence)
    return [word for word, _ in counts.most_common(count)]
