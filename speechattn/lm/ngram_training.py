"""N-gram language models counted from text: interpolated modified Kneser-Ney, written as ARPA.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1998), as
KenLM's `lmplz` computes it (Heafield et al. 2013): lower orders count the different units before an
n-gram rather than its occurrences, except for those that begin a sentence; each order has its own
discounts, for counts of 1, of 2 and of more; unigrams are interpolated with equal shares for all
units, `<unk>` among them, so that units that the text lacks have a share too.
"""

import gzip
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError
from speechattn.files import replacing
from speechattn.lm.ngram import NgramLm
from speechattn.lm.perplexity import Perplexity, ngram_perplexity
from speechattn.lm.texts import TokenLines, read_texts
from speechattn.units import BLANK

logger = logging.getLogger(__name__)

MAX_ORDER = 10
NEVER = -99.0  # log10 of the probability of <s>, which is not used
FALLBACK = np.array([0.5, 1.0, 1.5])  # KenLM's discounts, where counts allow no estimate
LINES = 100_000  # written at once


@dataclass(frozen=True)
class Ngrams:
    """The different n-grams of one order; `<s>` is V, `</s>` is V - 1.

    Unigrams are all units, seen or not, each at its id.
    """

    last: np.ndarray  # (M,) int64, the last unit
    prefix: np.ndarray  # (M,) int64, index of all units but the last in the order below, or 0
    suffix: np.ndarray  # (M,) int64, index of all units but the first
    seen: np.ndarray  # (M,) int64, occurrences
    count: np.ndarray  # (M,) int64, to discount: `seen`, or the different units before the n-gram


def count_ngrams(lines: TokenLines, order: int, vocab_size: int) -> list[Ngrams]:
    """Count the n-grams of sentences, of orders 1 to `order`; `vocab_size` is V."""
    words, place = _words(lines, vocab_size)
    units, none = np.arange(vocab_size + 1), np.zeros(vocab_size + 1, np.int64)
    seen = np.bincount(words, minlength=len(units))
    orders = [Ngrams(units, none, none, seen, seen)]
    starts = units == vocab_size
    below = words  # the n-gram of the order below that ends at each word
    for n in range(2, order + 1):
        ends = np.flatnonzero(place >= n - 1)
        keys = below[ends - 1] * len(units) + words[ends]
        key, first, index, seen = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        suffix = below[ends[first]]
        # Only <s> precedes the n-grams that begin a sentence.
        different = np.bincount(suffix, minlength=len(orders[-1].last))
        orders[-1] = replace(orders[-1], count=np.where(starts, orders[-1].seen, different))
        orders.append(Ngrams(key % len(units), key // len(units), suffix, seen, seen))
        starts = place[ends[first]] == n - 1
        below = np.zeros_like(words)
        below[ends] = index
    return orders


def _words(lines: TokenLines, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all words with `<s>` and `</s>` and their places in their sentences, both int64."""
    lengths = lines.lengths + 2
    starts = np.cumsum(lengths) - lengths
    words = np.full(int(lengths.sum()), -1, np.int64)
    words[starts] = vocab_size
    words[starts + lengths - 1] = vocab_size - 1
    words[words < 0] = lines.ids
    return words, np.arange(len(words)) - np.repeat(starts, lengths)


def discounts(count: np.ndarray, order: int) -> np.ndarray:
    """Estimate the discounts of counts of 1, of 2 and of more, (3,), as Chen and Goodman do."""
    n = np.bincount(np.minimum(count, 5), minlength=6)[1:5].astype(np.float64)
    estimate = np.full(3, -1.0)
    if n[:3].all():
        y = n[0] / (n[0] + 2 * n[1])
        estimate = np.arange(1, 4) - np.arange(2, 5) * y * n[1:] / n[:3]
    if ((estimate <= 0) | (estimate > np.arange(1, 4))).any():
        why = "too few occur once, twice and three times (or sentences are repeated)"
        logger.warning("%d-grams: %s to estimate discounts; using 0.5, 1 and 1.5", order, why)
        return FALLBACK
    return estimate


@dataclass(frozen=True)
class Estimate:
    """The model of the n-grams of one order."""

    prob: np.ndarray  # (M,) float64, of the last unit after the others
    weight: np.ndarray  # (M,) float64, of backing off from it; 1 where nothing follows it
    keep: np.ndarray  # (M,) bool, whether it is written


def kneser_ney(ngrams: Sequence[Ngrams], vocab_size: int, min_count: int = 1) -> list[Estimate]:
    """Estimate probabilities and back-off weights of what `count_ngrams` returns, by order.

    N-grams of three units and more that occur less often than `min_count` are dropped; their
    probability goes to the orders below.
    """
    estimates: list[Estimate] = []
    lower = np.full(vocab_size + 1, 1.0 / (vocab_size - 1))  # of all but blank and <s>
    for n, grams in enumerate(ngrams, 1):
        count = grams.count.copy()
        if n == 1:
            count[vocab_size] = 0  # <s> follows nothing
        taken = np.append(0.0, discounts(count, n))[np.minimum(count, 3)]
        keep = (grams.seen >= min_count) | (n < 3)
        contexts = len(lower) if n > 1 else 1
        total = np.bincount(grams.prefix, count, contexts)
        kept = np.bincount(grams.prefix, (count - taken) * keep, contexts)
        followed = np.bincount(grams.prefix, keep, contexts) > 0
        weight = np.where(followed, 1.0 - kept / np.maximum(total, 1.0), 1.0)
        suffix = grams.suffix if n > 1 else grams.last
        prob = (count - taken) / total[grams.prefix] + weight[grams.prefix] * lower[suffix]
        if n > 1:
            estimates[-1] = replace(estimates[-1], weight=weight)
        estimates.append(Estimate(prob, np.ones(len(prob)), keep))
        lower = prob
    return estimates


def write_arpa(
    path: str | Path, tokens: Sequence[str], ngrams: Sequence[Ngrams], estimates: Sequence[Estimate]
) -> list[int]:
    """Write a model; gzipped if the file is named `.gz`.

    Returns:
        How many n-grams there are, by order.
    """
    path = Path(path)
    keep = [e.keep.copy() for e in estimates]
    keep[0][BLANK] = False
    counts = [n for n in (int(k.sum()) for k in keep) if n]
    opened = gzip.open if path.suffix == ".gz" else open
    with replacing(path) as part, opened(part, "wt", encoding="utf-8", newline="\n") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={count}\n" for n, count in enumerate(counts, 1))
        for n in range(1, len(counts) + 1):
            file.write(f"\n\\{n}-grams:\n")
            file.writelines(_rows(tokens, ngrams[:n], estimates[n - 1], keep[n - 1]))
        file.write("\n\\end\\\n")
    return counts


def _rows(
    tokens: Sequence[str], ngrams: Sequence[Ngrams], estimate: Estimate, keep: np.ndarray
) -> Iterator[str]:
    """Yield the lines of the n-grams of the last order in `ngrams`."""
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
    *,
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
        min_count: n-grams of three units and more that occur less often are dropped.
        valid_text: texts whose perplexity is logged.

    Returns:
        The perplexity of each of `valid_text`.
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
