"""N-gram language models counted from text: interpolated modified Kneser-Ney, written as ARPA.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1998), as
KenLM's `lmplz` computes it (Heafield et al. 2013): lower orders count the different units before an
n-gram rather than how often it is seen, but for those that begin a sentence, which have none; each
order has its own discounts, for counts of 1, of 2 and of more; unigrams are interpolated with equal
shares for all units, `<unk>` among them, so that a unit that the text lacks has its share too.

Legend: N words of the text, a sentence's ends among them, M n-grams of one order, V units.
"""

import gzip
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError
from speechattn.lm.ngram import NgramLm
from speechattn.lm.perplexity import Perplexity, ngram_perplexity
from speechattn.lm.texts import TokenLines, read_texts
from speechattn.units import BLANK

logger = logging.getLogger(__name__)

MAX_ORDER = 10
NEVER = -99.0  # log10 of a probability that nobody asks for: of <s>
FALLBACK = np.array([0.5, 1.0, 1.5])  # KenLM's, where counts allow no estimate
LINES = 100_000  # written at once


@dataclass(frozen=True)
class Ngrams:
    """The different n-grams of one order; `<s>` is V, `</s>` is V - 1.

    All units are among those of one, seen or not, each at its id.

    Attributes:
        last: (M,) int64, the last unit.
        prefix: (M,) int64, which n-gram of the order below all but the last are; 0 for unigrams.
        suffix: (M,) int64, which all but the first are.
        seen: (M,) int64, how often.
        count: (M,) int64, what is discounted: `seen`, or the different units before it.
    """

    last: np.ndarray
    prefix: np.ndarray
    suffix: np.ndarray
    seen: np.ndarray
    count: np.ndarray


def count_ngrams(lines: TokenLines, order: int, vocab_size: int) -> list[Ngrams]:
    """The n-grams of sentences, by order.

    Args:
        lines: the sentences.
        order: of the longest n-grams.
        vocab_size: V.
    """
    words, place = _words(lines, vocab_size)
    units, none = np.arange(vocab_size + 1), np.zeros(vocab_size + 1, np.int64)
    seen = np.bincount(words, minlength=len(units))
    found = [Ngrams(units, none, none, seen, seen)]
    starts = units == vocab_size
    below = words  # by the word that it ends in: the n-gram of the order below
    for n in range(2, order + 1):
        ends = np.flatnonzero(place >= n - 1)
        key, first, index, seen = np.unique(
            below[ends - 1] * len(units) + words[ends],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        suffix = below[ends[first]]
        # Nothing but <s> stands before what begins a sentence.
        different = np.bincount(suffix, minlength=len(found[-1].last))
        found[-1] = replace(found[-1], count=np.where(starts, found[-1].seen, different))
        found.append(Ngrams(key % len(units), key // len(units), suffix, seen, seen))
        starts = place[ends[first]] == n - 1
        below = np.zeros_like(words)
        below[ends] = index
    return found


def _words(lines: TokenLines, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All words with `<s>` and `</s>`, (N,) int64, and the place of each in its sentence (N,)."""
    lengths = lines.lengths + 2
    starts = np.cumsum(lengths) - lengths
    words = np.full(int(lengths.sum()), -1, np.int64)
    words[starts] = vocab_size
    words[starts + lengths - 1] = vocab_size - 1
    words[words < 0] = lines.ids
    return words, np.arange(len(words)) - np.repeat(starts, lengths)


def discounts(count: np.ndarray, order: int) -> np.ndarray:
    """What is taken from counts of 1, of 2 and of more, (3,), by Chen and Goodman's formula."""
    n = np.bincount(np.minimum(count, 5), minlength=6)[1:5].astype(np.float64)
    found = np.full(3, -1.0)
    if n[:3].all():
        y = n[0] / (n[0] + 2 * n[1])
        found = np.arange(1, 4) - np.arange(2, 5) * y * n[1:] / n[:3]
    if ((found <= 0) | (found > np.arange(1, 4))).any():
        logger.warning(
            "%d-grams: too few are seen once, twice and three times (or sentences are repeated) to "
            "tell what to discount; 0.5, 1 and 1.5 are taken",
            order,
        )
        return FALLBACK
    return found


@dataclass(frozen=True)
class Estimate:
    """What is said of the n-grams of one order.

    Attributes:
        prob: (M,) float64, given what is before the last unit.
        weight: (M,) float64, of backing off from it; 1 where nothing follows it.
        keep: (M,) bool, whether it stands in the model.
    """

    prob: np.ndarray
    weight: np.ndarray
    keep: np.ndarray


def kneser_ney(ngrams: Sequence[Ngrams], vocab_size: int, min_count: int = 1) -> list[Estimate]:
    """Probabilities and back-off weights, by order.

    Args:
        ngrams: as `count_ngrams` gives them.
        vocab_size: V.
        min_count: n-grams of three units and more that are seen less often are left out; what they
            had goes to the orders below.
    """
    found: list[Estimate] = []
    lower = np.full(vocab_size + 1, 1.0 / (vocab_size - 1))  # of all but blank and <s>
    for n, grams in enumerate(ngrams, 1):
        count = grams.count.copy()
        if n == 1:
            count[vocab_size] = 0  # <s> follows nothing
        taken = np.append(0.0, discounts(count, n))[np.minimum(count, 3)]
        keep = (grams.seen >= min_count) | (n < 3)
        contexts = len(lower) if n > 1 else 1
        total = np.bincount(grams.prefix, count, contexts)
        given = np.bincount(grams.prefix, (count - taken) * keep, contexts)
        followed = np.bincount(grams.prefix, keep, contexts) > 0
        weight = np.where(followed, 1.0 - given / np.maximum(total, 1.0), 1.0)
        suffix = grams.suffix if n > 1 else grams.last
        prob = (count - taken) / total[grams.prefix] + weight[grams.prefix] * lower[suffix]
        if n > 1:
            found[-1] = replace(found[-1], weight=weight)
        found.append(Estimate(prob, np.ones(len(prob)), keep))
        lower = prob
    return found


def write_arpa(
    path: str | Path, tokens: Sequence[str], ngrams: Sequence[Ngrams], estimates: Sequence[Estimate]
) -> list[int]:
    """Write a model, whole or not at all; gzipped if the file is named `.gz`.

    Returns:
        How many n-grams there are, by order.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    keep = [e.keep.copy() for e in estimates]
    keep[0][BLANK] = False
    counts = [int(k.sum()) for k in keep]
    counts = [n for n in counts if n]
    part = path.with_name(f".{path.name}.partial{os.getpid()}")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(part, "wt", encoding="utf-8", newline="\n") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={count}\n" for n, count in enumerate(counts, 1))
        for n in range(1, len(counts) + 1):
            file.write(f"\n\\{n}-grams:\n")
            file.writelines(_rows(tokens, ngrams[:n], estimates[n - 1], keep[n - 1]))
        file.write("\n\\end\\\n")
    part.replace(path)
    return counts


def _rows(
    tokens: Sequence[str], ngrams: Sequence[Ngrams], estimate: Estimate, keep: np.ndarray
) -> Iterator[str]:
    """The lines of the n-grams of the last order in `ngrams`."""
    names = [*tokens[:-1], "</s>", "<s>"]
    prob = np.log10(np.maximum(estimate.prob, 10.0**NEVER))
    if len(ngrams) == 1:
        prob[-1] = NEVER
    weight = np.log10(estimate.weight)
    for at in np.array_split(np.flatnonzero(keep), 1 + int(keep.sum()) // LINES):
        row, words = at, []
        for grams in reversed(ngrams):
            words.append(grams.last[row])
            row = grams.prefix[row]
        texts = np.stack(words[::-1], 1).tolist()
        for p, w, ids in zip(prob[at].tolist(), weight[at].tolist(), texts, strict=True):
            back = f"\t{w:.7g}" if w else ""
            yield f"{p:.7g}\t{' '.join(names[i] for i in ids)}{back}\n"


def train_ngram(
    texts: Iterable[str | Path],
    tokenizer_dir: str | Path,
    output: str | Path,
    order: int = 4,
    min_count: int = 1,
    valid_text: Iterable[str | Path] = (),
) -> list[Perplexity]:
    """Count an n-gram model of a tokenizer's units into an ARPA file.

    Args:
        texts: to count, see `read_texts`.
        tokenizer_dir: of the models that it will go with.
        output: the file, gzipped if it is named `.gz`.
        order: units of the longest n-grams, 1..10.
        min_count: n-grams of three units and more that are seen less often are left out.
        valid_text: texts whose perplexity is logged.

    Returns:
        Of each of `valid_text`.
    """
    if not 1 <= order <= MAX_ORDER:
        raise ConfigError(f"--order {order}: it has to be in 1..{MAX_ORDER}")
    if min_count < 1:
        raise ConfigError(f"--min-count {min_count}: it has to be at least 1")
    tokenizer = Tokenizer.load(tokenizer_dir)
    lines = TokenLines.of(read_texts(texts), tokenizer)
    ngrams = count_ngrams(lines, order, tokenizer.vocab_size)
    estimates = kneser_ney(ngrams, tokenizer.vocab_size, min_count)
    counts = write_arpa(output, tokenizer.tokens, ngrams, estimates)
    logger.info("%s: %s n-grams of 1 to %d units", output, counts, len(counts))
    lm = NgramLm.from_arpa(output, tokenizer.tokens)
    results = []
    for path in valid_text:
        results.append(ngram_perplexity(lm, TokenLines.of(read_texts([path]), tokenizer)))
        logger.info("%s: %s", path, results[-1])
    return results
