"""The base of the tokenizers, and how they are saved.

Ids are ESPnet's: 0 `<blank>`, 1 `<unk>`, the last `<sos/eos>`; between them the units. Texts keep
their case and their characters as they are (no Unicode normalisation); only white space is made
uniform, each run of it one space and none at the ends, so that

    decode(encode(text)) == " ".join(text.split())

for every text whose characters were seen in training. What was not seen comes back as UNK_MARK.

A saved tokenizer is `tokens.txt` (one token a line, the id is the line number from 0),
`tokenizer.json` (kind, size, checksum) and what its class adds.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Self

from speechattn.errors import ConfigError
from speechattn.files import write_text
from speechattn.units import BLANK_TOKEN, SOS_EOS_TOKEN, UNK_TOKEN


class Tokenizer(ABC):
    """Base of the tokenizers.

    Attributes:
        kinds: the kinds of tokenizer that a class makes.
        kind: that of this one: "char", "bpe" or "unigram".
        tokens: all tokens, at their ids.
        vocab_size: number of tokens, with `<blank>`, `<unk>` and `<sos/eos>`.
        blank_id, unk_id, sos_eos_id: 0, 1 and `vocab_size - 1`.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    kind: str
    blank_id = 0
    unk_id = 1

    def __init__(self, tokens: Sequence[str]):
        self.tokens = list(tokens)
        ends = [*self.tokens[:2], *self.tokens[-1:]]
        if len(self.tokens) < 3 or ends != [BLANK_TOKEN, UNK_TOKEN, SOS_EOS_TOKEN]:
            raise ConfigError(
                f"tokens: must be {BLANK_TOKEN}, {UNK_TOKEN}, ..., {SOS_EOS_TOKEN}; ends are {ends}"
            )
        if repeated := [token for token, n in Counter(self.tokens).items() if n > 1]:
            raise ConfigError(f"tokens: {repeated[:5]} are there more than once")

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens."""
        return len(self.tokens)

    @property
    def sos_eos_id(self) -> int:
        """Return the id of `<sos/eos>`, the last one."""
        return len(self.tokens) - 1

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Convert a text to ids, without `<sos/eos>`."""

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text.

        Args:
            ids: integers, a list or a 1-D tensor. Blank and sos/eos are dropped, unknown becomes
                UNK_MARK; repeats stay, collapsing a CTC path is the caller's.

        Raises:
            ValueError: an id outside of the vocabulary.
        """
        return self._join(self._units(ids))

    def save(self, folder: str | Path) -> None:
        """Write `tokens.txt`, `tokenizer.json` and what else `load` needs."""
        folder = Path(folder)
        text = "".join(f"{token}\n" for token in self.tokens)
        write_text(folder / "tokens.txt", text)
        about = {"kind": self.kind, "vocab_size": self.vocab_size, "sha256": _checksum(text)}
        write_text(folder / "tokenizer.json", json.dumps(about, indent=2) + "\n")

    @staticmethod
    def load(folder: str | Path) -> "Tokenizer":
        """Load the tokenizer that was saved in a folder.

        Raises:
            ConfigError: a file is missing, or the files do not fit each other.
        """
        folder = Path(folder)
        about = _read_about(folder / "tokenizer.json")
        path = folder / "tokens.txt"
        text = read_bytes(path).decode("utf-8")
        tokens = text.removesuffix("\n").split("\n")  # not splitlines: U+2028 may be a token
        if len(tokens) != about.get("vocab_size"):
            raise ConfigError(
                f"{path}: {len(tokens)} tokens, tokenizer.json says {about.get('vocab_size')}"
            )
        if about.get("sha256") != _checksum(text):
            raise ConfigError(f"{path}: was changed after saving (checksum in tokenizer.json)")
        kind = about.get("kind")
        for one in Tokenizer.__subclasses__():
            if kind in one.kinds:
                return one._open(folder, kind, tokens)
        raise ConfigError(f"{folder / 'tokenizer.json'}: kind: unknown kind {kind!r}")

    @classmethod
    def _open(cls, folder: Path, kind: str, tokens: list[str]) -> Self:
        """Open the files of a folder, whose tokens were read; needed for those with `kinds`."""
        raise NotImplementedError

    @abstractmethod
    def _join(self, units: list[str]) -> str:
        """Join units, without blank and sos/eos, to text."""

    def _units(self, ids: Iterable[int]) -> list[str]:
        units = []
        for index in map(int, ids):
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"id {index} is not in the vocabulary of {self.vocab_size}")
            if index not in (self.blank_id, self.sos_eos_id):
                units.append(self.tokens[index])
        return units

    def __repr__(self) -> str:
        return f"{type(self).__name__}(kind={self.kind!r}, vocab_size={self.vocab_size})"


def collapse_spaces(text: str) -> str:
    return " ".join(text.split())


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def _read_about(path: Path) -> dict:
    try:
        about = json.loads(read_bytes(path))
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON ({error})") from error
    if not isinstance(about, dict):
        raise ConfigError(f"{path}: is not a JSON object")
    return about
