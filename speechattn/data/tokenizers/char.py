"""Characters as tokens."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from speechattn.data.tokenizers.base import Tokenizer, collapse_spaces
from speechattn.errors import ConfigError
from speechattn.units import BLANK_TOKEN, SOS_EOS_TOKEN, SPACE_TOKEN, UNK_MARK, UNK_TOKEN


class CharTokenizer(Tokenizer):
    """One token a character (code point); the space is `<space>`, as in ESPnet.

    Args:
        tokens: all tokens, at their ids.
    """

    kinds = ("char",)
    kind = "char"

    def __init__(self, tokens: Sequence[str]):
        super().__init__(tokens)
        units = (t for t in self.tokens[2:-1] if t != SPACE_TOKEN)
        if wrong := [t for t in units if len(t) != 1 or t.isspace()]:
            raise ConfigError(f"tokens: {wrong[:5]} are not single characters")
        self._ids = {" " if t == SPACE_TOKEN else t: i for i, t in enumerate(self.tokens)}

    @classmethod
    def train(cls, texts: Iterable[str], min_count: int = 1) -> Self:
        """Make tokens of the characters of texts, most frequent first (ties by code point).

        Characters rarer than `min_count` become `<unk>`.
        """
        counts = Counter(character for text in texts for character in collapse_spaces(text))
        units = sorted((c for c in counts if counts[c] >= min_count), key=lambda c: (-counts[c], c))
        if not units:
            raise ConfigError("texts: there is no character in them to make tokens of")
        units = [SPACE_TOKEN if c == " " else c for c in units]
        return cls([BLANK_TOKEN, UNK_TOKEN, *units, SOS_EOS_TOKEN])

    @classmethod
    def _open(cls, folder: Path, kind: str, tokens: list[str]) -> Self:
        return cls(tokens)

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(character, self.unk_id) for character in collapse_spaces(text)]

    def _join(self, units: list[str]) -> str:
        return "".join({SPACE_TOKEN: " ", UNK_TOKEN: UNK_MARK}.get(unit, unit) for unit in units)
