"""Reading n-grams from ARPA files; `ngram_training` writes them."""

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from speechattn.errors import ConfigError


@dataclass(frozen=True)
class ArpaNgrams:
    """The n-grams of one order, M of them; natural logs."""

    words: Tensor  # (M, order) int64
    log_prob: Tensor  # (M,) float64
    weight: Tensor  # (M,) float64, of backing off; 0 where the file gives none


def read_arpa(path: str | Path, words: dict[bytes, int]) -> list[ArpaNgrams]:
    """Read the n-grams of an ARPA file, gzipped or not, by order, those of known words only.

    `words` are the ids of these by their UTF-8.

    Raises:
        ConfigError: it is not an ARPA file, or not complete.
    """
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if packed else raw as file:
                return _sections(file, path, words)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _sections(file: IO[bytes], path: str | Path, words: dict[bytes, int]) -> list[ArpaNgrams]:
    # Bytes: their split knows only ASCII white space, and a unit may be other white space.
    lines = enumerate(file, 1)
    for _, line in lines:
        if line.strip() == b"\\data\\":
            break
    else:
        raise ConfigError(f"{path}: not an ARPA file: it has no line \\data\\")
    counts, title = [], b""
    for number, line in lines:
        title = line.strip()
        if title.startswith(b"\\"):
            break
        if title:
            count = re.fullmatch(rb"ngram\s+(\d+)\s*=\s*(\d+)", title)
            if not count or int(count[1]) != len(counts) + 1:
                raise ConfigError(f"{path}:{number}: expected 'ngram {len(counts) + 1}=COUNT'")
            counts.append(int(count[2]))
    if not counts:
        raise ConfigError(f"{path}: not an ARPA file: it counts no n-grams")
    result = []
    for order, count in enumerate(counts, 1):
        if title != b"\\%d-grams:" % order:
            raise ConfigError(f"{path}: incomplete: expected \\{order}-grams:, got {title!r}")
        grams, rows, title = _section(lines, path, words, order)
        if rows != count:
            raise ConfigError(f"{path}: {rows} {order}-grams where {count} were announced")
        result.append(grams)
        if order == 1:  # words without a 1-gram are unknown
            known = set(grams.words[:, 0].tolist())
            words = {word: i for word, i in words.items() if i in known}
    if title != b"\\end\\":
        raise ConfigError(f"{path}: incomplete: it does not end in \\end\\")
    return result


def _section(
    lines: Iterator[tuple[int, bytes]], path: str | Path, words: dict[bytes, int], order: int
) -> tuple[ArpaNgrams, int, bytes]:
    """Return the n-grams up to the next title, the number of their lines, and that title."""
    ids, values, rows, title = [], [], 0, b""
    for number, line in lines:
        parts = line.split()
        if not parts:
            continue
        if parts[0].startswith(b"\\") and len(parts) == 1:
            title = parts[0]
            break
        rows += 1
        try:
            prob, weight = float(parts[0]), float(parts[order + 1]) if parts[order + 1 :] else 0.0
            if not (len(parts) in (order + 1, order + 2) and prob < 99 and weight < 99):
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"{path}:{number}: expected a log-probability, {order} words and perhaps a "
                f"back-off weight, got {line.decode(errors='replace').strip()!r}"
            ) from None
        found = [words.get(word) for word in parts[1 : order + 1]]
        if None not in found:
            ids.append(found)
            values.append((prob, weight))
    gram_ids = torch.tensor(ids, dtype=torch.int64).view(-1, order)
    logs = torch.tensor(values, dtype=torch.float64).view(-1, 2) * math.log(10)
    return ArpaNgrams(gram_ids, logs[:, 0], logs[:, 1]), rows, title
