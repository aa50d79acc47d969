"""Sentences for language models: a text file, or the transcripts of a cuts manifest."""

import gzip
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)

MANIFESTS = (".jsonl", ".jsonl.gz")


def read_texts(paths: Iterable[str | Path]) -> list[str]:
    """Read the sentences of files, in order, without empty ones.

    Args:
        paths: Lhotse cuts (`.jsonl`, `.jsonl.gz`), whose transcripts are read, or text, a sentence
            a line, UTF-8, gzipped (`.gz`) or not.

    Raises:
        ConfigError: a file cannot be read, or there is no sentence in it.
    """
    texts: list[str] = []
    for path in map(Path, paths):
        try:
            manifest = path.name.endswith(MANIFESTS)
            lines = _transcripts(path) if manifest else _lines(path)
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as text: {error}") from error
        lines = [line for line in lines if line.strip()]
        if not lines:
            raise ConfigError(f"{path}: there is no sentence in it")
        texts += lines
    return texts


def _lines(path: Path) -> list[str]:
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    # Not splitlines: U+2028 and similar characters may occur in a sentence.
    return data.decode("utf-8-sig").split("\n")


def _transcripts(path: Path) -> list[str]:
    from lhotse import CutSet

    if not path.is_file():
        raise ConfigError(f"{path}: no such manifest")
    texts = [" ".join(s.text for s in cut.supervisions if s.text) for cut in CutSet.from_file(path)]
    if missing := sum(not text.strip() for text in texts):
        logger.warning("%s: %d of %d cuts have no transcript", path, missing, len(texts))
    return texts


@dataclass(frozen=True)
class TokenLines:
    """Sentences as token ids, one after the other, without <sos/eos>."""

    ids: np.ndarray  # (tokens,) int32
    starts: np.ndarray  # (sentences + 1,) int64, where each begins, and the end
    characters: int  # of all sentences, spaces counted, white space made uniform
    unknown: int  # how many of `ids` are `<unk>`

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Tokenizer) -> "TokenLines":
        """Tokenize sentences."""
        lines = [np.array(tokenizer.encode(text), dtype=np.int32) for text in texts]
        ids = np.concatenate(lines) if lines else np.zeros(0, np.int32)
        return cls(
            ids,
            np.cumsum([0, *map(len, lines)]),
            sum(len(" ".join(text.split())) for text in texts),
            int((ids == tokenizer.unk_id).sum()),
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the ids of one sentence."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.ids[self.starts[index] : self.starts[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each sentence, int64."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class LmBatch:
    """Sentences behind <sos>."""

    tokens: Tensor  # (B, U) int64, starting with <sos>; <sos> again beyond a length
    lengths: Tensor  # (B,) int64, <sos> counted

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "LmBatch":
        """Move to a device."""
        tokens = self.tokens.to(device, non_blocking=non_blocking)
        return LmBatch(tokens, self.lengths.to(device, non_blocking=non_blocking))


def collate_lines(lines: Sequence[np.ndarray], sos: int) -> LmBatch:
    """Make a batch of sentences (token ids without <sos>)."""
    lengths = torch.tensor([1 + len(line) for line in lines])
    tokens = torch.full((len(lines), int(lengths.max())), sos)
    for row, line in zip(tokens, lines, strict=True):
        row[1 : len(line) + 1] = torch.from_numpy(line)
    return LmBatch(tokens, lengths)


def hold_out(texts: Sequence[str], every: int = 50) -> tuple[list[str], list[str]]:
    """Split sentences into those to learn from and every fiftieth to validate on.

    Raises:
        ConfigError: there are too few.
    """
    kept = [text for i, text in enumerate(texts) if i % every]
    held = [text for i, text in enumerate(texts) if i % every == 0]
    if not kept:
        raise ConfigError(f"{len(texts)} sentence(s) are too few to hold some out; --valid-text")
    return kept, held
