"""Token lists of other toolkits as our tokenizers, with the same ids."""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from speechattn.data.tokenizers import CharTokenizer, SentencePieceTokenizer, Tokenizer
from speechattn.errors import ConfigError
from speechattn.units import BLANK_TOKEN, SOS_EOS_TOKEN, UNK_TOKEN

# Fields of SentencePiece's ModelProto, of a piece in it and of its TrainerSpec.
_PIECES, _TRAINER = 1, 2
_TEXT, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE = 3
_UNUSED = 5  # a piece that text is never cut into
_KINDS = {1: "unigram", 2: "bpe"}


def make_tokenizer(tokens: Sequence[str], bpe_model: Path | None = None) -> Tokenizer:
    """Make a tokenizer with exactly these ids.

    Args:
        tokens: `<blank>`, `<unk>`, units, `<sos/eos>`.
        bpe_model: the SentencePiece model of the units; without one they have to be characters.

    Raises:
        ConfigError: the list is no such one, or the file is no SentencePiece model.
    """
    if bpe_model is not None:
        try:
            model = bpe_model.read_bytes()
        except OSError as error:
            raise ConfigError(f"{bpe_model}: cannot be read ({error.strerror})") from error
        try:
            model, kind = with_pieces(model, tokens[1:-1])
        except (struct.error, IndexError, ValueError) as error:
            raise ConfigError(f"{bpe_model}: is no SentencePiece model ({error})") from error
        tokenizer = SentencePieceTokenizer(model, kind)
        if tokenizer.tokens != list(tokens):
            ends = [*tokens[:2], *tokens[-1:]]
            raise ConfigError(
                f"tokens: must be {BLANK_TOKEN}, {UNK_TOKEN}, ..., {SOS_EOS_TOKEN}; ends are {ends}"
            )
        return tokenizer
    if long := [token for token in tokens[2:-1] if len(token) != 1 and token != "<space>"]:
        raise ConfigError(
            f"tokens: {long[:5]} are not single characters: give the SentencePiece model that "
            "goes with them (--bpe-model)"
        )
    return CharTokenizer(tokens)


def with_pieces(model: bytes, pieces: Sequence[str]) -> tuple[bytes, Literal["bpe", "unigram"]]:
    """Return a SentencePiece model with these pieces in this order, and its kind.

    Other toolkits number units by themselves: ESPnet leaves out `<s>` and `</s>`, auto_avsr sorts
    the pieces of its training text. Here a unit's id is its piece's place in the model. So the
    pieces are put in the units' order, each with its score. Pieces that are no unit are dropped. A
    unit that is no piece (auto_avsr has some such characters) gets a place, but text never has it.
    The model is a serialised ModelProto; of the pieces `<unk>` comes first.

    Raises:
        struct.error, IndexError, ValueError: it is no such model.
    """
    old, rest, kind = {}, b"", 1
    for number, raw, value in _fields(model):
        if number in (_PIECES, _TRAINER) and not isinstance(value, bytes):
            raise ValueError(f"field {number} is a number")
        if number == _PIECES:
            text = next((v for n, _, v in _fields(value) if n == _TEXT), None)
            if not isinstance(text, bytes):
                raise ValueError("a piece has no text")
            old[text.decode("utf-8")] = raw
            continue
        if number == _TRAINER:
            kind = next((v for n, _, v in _fields(value) if n == _MODEL_TYPE), kind)
        rest += raw
    if kind not in _KINDS:
        raise ValueError("it is neither a unigram nor a BPE model")
    if not old:
        raise ValueError("it has no pieces")
    return b"".join(old.get(piece) or _unused(piece) for piece in pieces) + rest, _KINDS[kind]


def _unused(piece: str) -> bytes:
    text = piece.encode("utf-8")
    body = bytes([_TEXT << 3 | 2]) + _varint(len(text)) + text
    body += bytes([_SCORE << 3 | 5]) + struct.pack("<f", 0.0)
    body += bytes([_TYPE << 3, _UNUSED])
    return bytes([_PIECES << 3 | 2]) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, bytes, bytes | int]]:
    """Yield number, bytes and value of each field of a protocol buffer message."""
    at = 0
    while at < len(data):
        start = at
        key, at = _read_varint(data, at)
        kind = key & 7
        value: bytes | int
        if kind == 0:
            value, at = _read_varint(data, at)
        elif kind in (1, 2, 5):
            size, at = _read_varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value = data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(data):
            raise ValueError("it ends too early")
        yield key >> 3, data[start:at], value
