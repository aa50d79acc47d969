"""Tokenizers: text to token ids and back."""

from collections.abc import Iterable
from typing import Literal

from speechattn.data.tokenizers.base import Tokenizer
from speechattn.data.tokenizers.char import CharTokenizer
from speechattn.data.tokenizers.sentencepiece import SentencePieceTokenizer
from speechattn.data.tokenizers.token_lists import read_token_list, read_units, with_ends
from speechattn.errors import ConfigError
from speechattn.units import SOS_EOS_TOKEN

__all__ = [
    "CharTokenizer",
    "Kind",
    "SentencePieceTokenizer",
    "Tokenizer",
    "build_tokenizer",
    "read_token_list",
    "read_units",
    "with_ends",
]

Kind = Literal["char", "bpe", "unigram"]


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
