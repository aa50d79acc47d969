"""Text to token ids and back: characters or SentencePiece behind one `Tokenizer`.

Ids are ESPnet's: 0 `<blank>`, 1 `<unk>`, the last `<sos/eos>`; between them the units. Texts keep
their case and their characters as they are (no Unicode normalisation); only white space is made
uniform, each run of it one space and none at the ends, so that

    decode(encode(text)) == " ".join(text.split())

for every text whose characters were seen in training. What was not seen comes back as UNK_MARK.

A saved tokenizer is `tokens.txt` (one token a line, the id is the line number from 0),
`tokenizer.json` (kind, size, checksum) and, for SentencePiece (Kudo and Richardson,
arXiv:1808.06226), `bpe.model`.
"""

import hashlib
import io
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import sentencepiece

from speechattn.errors import ConfigError
from speechattn.units import BLANK_TOKEN, SOS_EOS_TOKEN, SPACE_TOKEN, UNK_MARK, UNK_TOKEN

Kind = Literal["char", "bpe", "unigram"]


class Tokenizer(ABC):
    """Base of the tokenizers.

    Attributes:
        kind: "char", "bpe" or "unigram".
        tokens: all tokens, at their ids.
        vocab_size: number of tokens, with `<blank>`, `<unk>` and `<sos/eos>`.
        blank_id, unk_id, sos_eos_id: 0, 1 and `vocab_size - 1`.
    """

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
        return len(self.tokens)

    @property
    def sos_eos_id(self) -> int:
        return len(self.tokens) - 1

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, without `<sos/eos>`."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids.

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
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{token}\n" for token in self.tokens)
        (folder / "tokens.txt").write_text(text, encoding="utf-8", newline="\n")
        about = {"kind": self.kind, "vocab_size": self.vocab_size, "sha256": _checksum(text)}
        (folder / "tokenizer.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: str | Path) -> "Tokenizer":
        """The tokenizer that was saved in a folder.

        Raises:
            ConfigError: a file is missing, or the files do not fit each other.
        """
        folder = Path(folder)
        about = _read_about(folder / "tokenizer.json")
        path = folder / "tokens.txt"
        text = _read(path).decode("utf-8")
        tokens = text.removesuffix("\n").split("\n")  # not splitlines: U+2028 may be a token
        if len(tokens) != about.get("vocab_size"):
            raise ConfigError(
                f"{path}: {len(tokens)} tokens, tokenizer.json says {about.get('vocab_size')}"
            )
        if about.get("sha256", _checksum(text)) != _checksum(text):
            raise ConfigError(f"{path}: was changed after saving (checksum in tokenizer.json)")
        kind = about.get("kind")
        if kind == "char":
            return CharTokenizer(tokens)
        if kind not in ("bpe", "unigram"):
            raise ConfigError(f"{folder / 'tokenizer.json'}: kind: unknown kind {kind!r}")
        tokenizer = SentencePieceTokenizer(_read(folder / "bpe.model"), kind)
        if tokenizer.tokens != tokens:
            raise ConfigError(f"{path}: its tokens are not the pieces of bpe.model")
        return tokenizer

    @abstractmethod
    def _join(self, units: list[str]) -> str:
        """Text of units, from which blank and sos/eos are gone already."""

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


class CharTokenizer(Tokenizer):
    """One token a character (code point); the space is `<space>`, as in ESPnet.

    Args:
        tokens: all tokens, at their ids.
    """

    kind = "char"

    def __init__(self, tokens: Sequence[str]):
        super().__init__(tokens)
        if wrong := [
            t for t in self.tokens[2:-1] if t != SPACE_TOKEN and (len(t) != 1 or t.isspace())
        ]:
            raise ConfigError(f"tokens: {wrong[:5]} are not single characters")
        self._ids = {" " if t == SPACE_TOKEN else t: i for i, t in enumerate(self.tokens)}

    @classmethod
    def train(cls, texts: Iterable[str], min_count: int = 1) -> "CharTokenizer":
        """The characters of texts, most frequent first (ties by code point).

        Args:
            texts: training transcripts.
            min_count: rarer characters become `<unk>`.
        """
        counts = Counter(character for text in texts for character in _uniform(text))
        units = sorted((c for c in counts if counts[c] >= min_count), key=lambda c: (-counts[c], c))
        if not units:
            raise ConfigError("texts: there is no character in them to make tokens of")
        return cls(
            [
                BLANK_TOKEN,
                UNK_TOKEN,
                *(SPACE_TOKEN if c == " " else c for c in units),
                SOS_EOS_TOKEN,
            ]
        )

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(character, self.unk_id) for character in _uniform(text)]

    def _join(self, units: list[str]) -> str:
        return "".join({SPACE_TOKEN: " ", UNK_TOKEN: UNK_MARK}.get(unit, unit) for unit in units)


class SentencePieceTokenizer(Tokenizer):
    """Subword units of a SentencePiece model.

    Its ids shift by one: piece 0 of the model is `<unk>`, 1 here, below it `<blank>`. A run of
    characters that the model does not know is a single `<unk>`.

    Args:
        model: the serialised model, or the path of the file.
        kind: "bpe" or "unigram".
    """

    def __init__(self, model: bytes | str | Path, kind: Literal["bpe", "unigram"] = "unigram"):
        self.kind = kind
        self.model = model if isinstance(model, bytes) else _read(Path(model))
        self._processor = _open_model(self.model)
        size = self._processor.get_piece_size()
        if self._processor.unk_id() != 0 or any(map(self._processor.is_control, range(size))):
            raise ConfigError(f"model: piece 0 must be {UNK_TOKEN} and the only special one")
        pieces = [self._processor.id_to_piece(i) for i in range(1, size)]
        super().__init__([BLANK_TOKEN, UNK_TOKEN, *pieces, SOS_EOS_TOKEN])

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        kind: Literal["bpe", "unigram"] = "unigram",
        character_coverage: float = 1.0,
    ) -> "SentencePieceTokenizer":
        """Train a model; the same texts give the same model.

        Args:
            texts: training transcripts.
            vocab_size: tokens in all, with `<blank>`, `<unk>` and `<sos/eos>`.
            kind: "bpe" or "unigram".
            character_coverage: share of the characters that get a piece; the rarest of a large
                script can become `<unk>`.

        Raises:
            ConfigError: no such vocabulary can be made of the texts; says the sizes that can.
        """
        lines = [line for line in map(_uniform, texts) if line]
        if not lines:
            raise ConfigError("texts: there is no text to train SentencePiece on")
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=written,
                model_type=kind,
                vocab_size=vocab_size - 2,
                character_coverage=character_coverage,
                normalization_rule_name="identity",
                max_sentence_length=max(len(line.encode()) for line in lines) + 1,
                unk_id=0,
                unk_surface=UNK_MARK,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise ConfigError(
                f"vocab_size: {kind} cannot make {vocab_size} tokens of these texts"
                f"{_possible_size(str(error))}"
            ) from error
        return cls(written.getvalue(), kind)

    def encode(self, text: str) -> list[int]:
        return [index + 1 for index in self._processor.encode(_uniform(text))]

    def save(self, folder: str | Path) -> None:
        super().save(folder)
        (Path(folder) / "bpe.model").write_bytes(self.model)

    def _join(self, units: list[str]) -> str:
        text = "".join(UNK_MARK if unit == UNK_TOKEN else unit for unit in units)
        return text.replace("\u2581", " ").removeprefix(" ")

    def __reduce__(self):
        return type(self), (self.model, self.kind)


def build_tokenizer(
    texts: Iterable[str], kind: Kind = "char", vocab_size: int | None = None
) -> Tokenizer:
    """Make a tokenizer from training transcripts.

    Args:
        texts: training transcripts.
        kind: "char", "bpe" or "unigram".
        vocab_size: tokens in all; needed for "bpe" and "unigram". For "char" an upper bound that
            the rarest characters fall out of, or None for all of them.

    Raises:
        ConfigError: unknown kind, or a vocabulary that cannot be made.
    """
    if kind == "char":
        tokenizer = CharTokenizer.train(texts)
        if vocab_size is None or tokenizer.vocab_size <= vocab_size:
            return tokenizer
        return CharTokenizer([*tokenizer.tokens[: vocab_size - 1], SOS_EOS_TOKEN])
    if kind not in ("bpe", "unigram"):
        raise ConfigError(f"kind: {kind!r} is none of char, bpe, unigram")
    if vocab_size is None:
        raise ConfigError(f"vocab_size: {kind} needs one")
    return SentencePieceTokenizer.train(texts, vocab_size, kind)


def read_units(path: Path) -> list[str]:
    """Tokens in the order of their ids, out of a file of one token a line.

    A line may end in the token's id, as auto_avsr's `*_units.txt` do, in which case they have to be
    in order, from 1.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a list of tokens: {error}") from error
    rows = [line.rstrip("\r").split(" ") for line in lines]
    if all(len(row) == 2 for row in rows):
        if wrong := [row[0] for i, row in enumerate(rows, 1) if row[1] != str(i)]:
            raise ConfigError(f"{path}: the id of {wrong[0]!r} is not the number of its line")
    elif any(len(row) != 1 for row in rows):
        raise ConfigError(f"{path}: a line is a token, or on every line a token and its id")
    return [row[0] for row in rows]


def with_ends(units: Sequence[str]) -> list[str]:
    """Units from `<unk>` on, as auto_avsr lists them, with blank before and sos/eos after."""
    if not units or units[0] != UNK_TOKEN:
        raise ConfigError(f"tokens: the first has to be {UNK_TOKEN}, not {list(units[:1])}")
    return [BLANK_TOKEN, *units, SOS_EOS_TOKEN]


def read_token_list(path: Path) -> list[str]:
    """All tokens at their ids out of a list of units that begins with `<blank>` or `<unk>`."""
    units = read_units(path)
    if units[:1] not in ([BLANK_TOKEN], [UNK_TOKEN]):
        raise ConfigError(
            f"{path}: its first unit is {units[0]!r}, neither {BLANK_TOKEN} nor {UNK_TOKEN}"
        )
    return units if units[0] == BLANK_TOKEN else with_ends(units)


def _uniform(text: str) -> str:
    return " ".join(text.split())


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def _read_about(path: Path) -> dict:
    try:
        about = json.loads(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON ({error})") from error
    if not isinstance(about, dict):
        raise ConfigError(f"{path}: is not a JSON object")
    return about


def _possible_size(error: str) -> str:
    """What SentencePiece says of the sizes that it can make, in our count of tokens (2 more)."""
    if most := re.search(r"value <= (\d+)", error):
        return f", at most {int(most[1]) + 2}"
    if least := re.search(r"\d+ vs (\d+)", error):
        return f", at least {int(least[1]) + 2}"
    return f": {error}" if error else ""


def _open_model(model: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ConfigError(f"model: not a SentencePiece model ({error})") from error
