"""SentencePiece units as tokens (Kudo and Richardson, arXiv:1808.06226)."""

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

import sentencepiece

from speechattn.data.tokenizers.base import Tokenizer, collapse_spaces, read_bytes
from speechattn.errors import ConfigError
from speechattn.files import write_bytes
from speechattn.units import BLANK_TOKEN, SOS_EOS_TOKEN, UNK_MARK, UNK_TOKEN, WORD_START

_MODEL = "bpe.model"


class SentencePieceTokenizer(Tokenizer):
    """Subword units of a SentencePiece model.

    Its ids shift by one: piece 0 of the model is `<unk>`, 1 here, below it `<blank>`. A run of
    characters that the model does not know is a single `<unk>`.

    Args:
        model: the serialised model, or the path of the file.
        kind: "bpe" or "unigram".
    """

    kinds = ("bpe", "unigram")

    def __init__(self, model: bytes | str | Path, kind: Literal["bpe", "unigram"] = "unigram"):
        self.kind = kind
        self.model = model if isinstance(model, bytes) else read_bytes(Path(model))
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
    ) -> Self:
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
        lines = [line for line in map(collapse_spaces, texts) if line]
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
                **dict.fromkeys(("bos_id", "eos_id", "pad_id"), -1),  # ours are others
                num_threads=1,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            failed = f"vocab_size: {kind} cannot make {vocab_size} tokens of these texts"
            raise ConfigError(failed + _possible_size(str(error))) from error
        return cls(written.getvalue(), kind)

    def encode(self, text: str) -> list[int]:
        return [index + 1 for index in self._processor.encode(collapse_spaces(text))]

    def save(self, folder: str | Path) -> None:
        super().save(folder)
        write_bytes(Path(folder) / _MODEL, self.model)

    @classmethod
    def _open(cls, folder: Path, kind: str, tokens: list[str]) -> Self:
        tokenizer = cls(read_bytes(folder / _MODEL), kind)
        if tokenizer.tokens != tokens:
            raise ConfigError(f"{folder / 'tokens.txt'}: its tokens are not the pieces of {_MODEL}")
        return tokenizer

    def _join(self, units: list[str]) -> str:
        text = "".join(UNK_MARK if unit == UNK_TOKEN else unit for unit in units)
        return text.replace(WORD_START, " ").removeprefix(" ")

    def __reduce__(self):
        return type(self), (self.model, self.kind)


def _possible_size(error: str) -> str:
    """Extract from SentencePiece's error which sizes it can make, in our count (2 more)."""
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
