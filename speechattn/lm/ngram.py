"""N-gram language models over the model's units, read from ARPA files.

Legend: N hypotheses, V units, S states (contexts), E arcs (n-grams of two units and more).

The units are the tokens of the model's tokenizer. A model of words over a character or
SentencePiece system needs a lexicon between the two and is out of scope here: train the n-gram on
text that was split into units, as `speechattn tokens` splits it (KenLM's `lmplz` then counts them).

Katz's back-off: an n-gram that is not in the model has the probability of the one that is a unit
shorter, times a weight of its context. So the scores after one context are the unigrams' row with a
few values written over it, once an order.
"""

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from speechattn.errors import ConfigError
from speechattn.units import BLANK, UNK

# log10 of an unknown unit's probability in a model without <unk>; KenLM's
UNKNOWN = -100.0


@dataclass(frozen=True)
class BackoffArcs:
    """A graph whose states keep only arcs of their own, and leave the others to shorter contexts.

    State 0 is the empty context; it has an arc for every unit. Every other state backs off to a
    shorter one, and so on to 0.

    Attributes:
        root: (V,) int64, the state that each unit leads to from state 0.
        backoff: (S,) int64; of state 0 it is 0.
        key: (E + 1,) int64, source * V + unit of the arcs, sorted; the last is larger than all.
        target: (E + 1,) int64, where the arcs lead to.
        first: (S + 1,) int64, the first arc of each state; state 0 has none here.
        hops: the most back-offs from any state to state 0.
    """

    root: Tensor
    backoff: Tensor
    key: Tensor
    target: Tensor
    first: Tensor
    hops: int

    @classmethod
    def of(cls, root: Tensor, backoff: Tensor, key: Tensor, target: Tensor) -> "BackoffArcs":
        """From arcs sorted by key, without the last that ends them."""
        starts = torch.arange(len(backoff) + 1) * len(root)
        end = torch.tensor([torch.iinfo(torch.int64).max])
        hops, state = 0, backoff
        while bool(state.any()):
            hops, state = hops + 1, backoff[state]
        return cls(
            root,
            backoff,
            torch.cat([key, end]),
            torch.cat([target, end * 0]),
            torch.searchsorted(key, starts),
            hops + (len(backoff) > 1),
        )

    def chain(self, state: Tensor) -> list[Tensor]:
        """The states (N,), what they back off to, and so on, without the last, which is 0."""
        states = []
        for _ in range(self.hops):
            states.append(state)
            state = self.backoff[state]
        return states

    def step(self, state: Tensor, unit: Tensor) -> Tensor:
        """Where units (N,) lead to from states (N,)."""
        found = self.root[unit]
        for context in reversed(self.chain(state)):
            at, hit = find(self.key, context * len(self.root) + unit)
            found = torch.where(hit, self.target[at], found)
        return found

    def write(self, row: Tensor, state: Tensor, values: Tensor, offset: Tensor) -> None:
        """Write the states' own arcs into their rows.

        Args:
            row: (N, V), contiguous; changed.
            state: (N,).
            values: (E + 1,), of each arc.
            offset: (N,), added to them.
        """
        begin = self.first[state]
        count = self.first[state + 1] - begin
        n, v = row.shape
        hypothesis = torch.arange(n, device=row.device)
        # Ragged: as many entries as all the states have arcs, each knowing its hypothesis.
        of = torch.repeat_interleave(hypothesis, count)
        skip = begin - (count.cumsum(0) - count)
        arc = torch.arange(len(of), device=row.device).add_(skip[of])
        place = self.key[arc].add_(((hypothesis - state) * v)[of])
        row.view(-1).scatter_(0, place, values[arc].add_(offset[of]))

    def to(self, device: torch.device | str) -> "BackoffArcs":
        """On another device."""
        return _to(self, device)


def find(key: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where in the sorted `key`, which ends in a larger one, the wanted are, and whether."""
    at = torch.searchsorted(key, wanted)
    return at, key[at] == wanted


@dataclass(frozen=True)
class NgramLm:
    """A back-off n-gram model over V units; natural logs.

    Attributes:
        arcs: contexts as states. A state is the longest end of what was said that the model knows.
        unigram: (V,) float32, -inf for blank.
        log_prob: (E + 1,) float32, of the longer n-grams.
        weight: (S,) float32, what backing off from a state costs; 0 for state 0.
        shortest: (S,) int64, what a state has backed off to before it is at 0.
        unit: (V,) int64, the unit that stands for each: itself, or <unk> where the model lacks it.
        missing: int64, the units that it lacks; blank is not among them.
        start: the state after <s>.
        order: the longest n-gram's units.
    """

    arcs: BackoffArcs
    unigram: Tensor
    log_prob: Tensor
    weight: Tensor
    shortest: Tensor
    unit: Tensor
    missing: Tensor
    start: int
    order: int

    @classmethod
    def from_arpa(
        cls, path: str | Path, tokens: Sequence[str], unknown: float = UNKNOWN
    ) -> "NgramLm":
        """Read an ARPA file, gzipped or not, of any order.

        The file's words have to be the tokenizer's tokens, spelt as in its `tokens.txt` (`<space>`
        and `▁` too). `<s>` is what <sos> is as a context, `</s>` is <eos>, `<unk>` or `<UNK>` is
        token 1. A token that the file lacks is an unknown word, as in KenLM: it scores as `<unk>`
        and is `<unk>` to what follows. N-grams with words that are no tokens are left out; no
        hypothesis can contain them.

        Args:
            path: the file.
            tokens: all V of them at their ids, `<blank>` first and `<sos/eos>` last.
            unknown: log10 of the probability of <unk>, for a file without it.

        Raises:
            ConfigError: it cannot be read as ARPA, and where; or it shares no word with the tokens.
        """
        v = len(tokens)
        words = {token.encode(): i for i, token in enumerate(tokens) if UNK < i < v - 1}
        special = {b"<unk>": UNK, b"<UNK>": UNK, b"</s>": v - 1, b"<s>": v}
        return _build(read_arpa(path, words | special), path, v, unknown)

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.unit)

    def to(self, device: torch.device | str) -> "NgramLm":
        """On another device."""
        return replace(_to(self, device), arcs=self.arcs.to(device))

    def step(self, state: Tensor, token: Tensor) -> Tensor:
        """The states (N,) after tokens (N,); <sos/eos> begins a sentence."""
        after = self.arcs.step(state, self.unit[token])
        return torch.where(token == self.vocab_size - 1, self.start, after)

    def score(self, state: Tensor, token: Tensor) -> Tensor:
        """Log-probability (N,) of a token (N,) after each state (N,), as in `scores`."""
        unit = self.unit[token]
        found = self.unigram[unit]
        for context in reversed(self.arcs.chain(state)):
            at, hit = find(self.arcs.key, context * self.vocab_size + unit)
            found = torch.where(hit, self.log_prob[at], found + self.weight[context])
        return found.clamp(max=0.0)

    def scores(self, state: Tensor) -> Tensor:
        """Log-probability of every next token (N, V); none above 0, -inf for blank."""
        # Contexts of one unit have by far the most arcs, and hypotheses of a beam share them.
        shared, at = torch.unique(self.shortest[state], return_inverse=True)
        paid = self.weight[shared]
        rows = self.unigram + paid[:, None]
        self.arcs.write(rows, shared, self.log_prob, torch.zeros_like(paid))
        # The longer ones; where the shared one's turn comes state 0 stands in, which has no arcs.
        chain = self.arcs.chain(state)[:-1]
        chain = [torch.where(context == shared[at], 0, context) for context in chain]
        offset = [torch.zeros_like(paid[at])]  # what has been paid to get to a context
        for context in chain:
            offset.append(offset[-1] + self.weight[context])
        row = rows[at].add_(offset.pop()[:, None])  # (N, V)
        for context, paid in zip(reversed(chain), reversed(offset), strict=True):
            self.arcs.write(row, context, self.log_prob, paid)
        if len(self.missing):
            row[:, self.missing] = row[:, [UNK]]
        # A file's rounding, or weights that do not add up, must not give a probability above 1.
        return row.clamp_(max=0.0)


@dataclass(frozen=True)
class ArpaNgrams:
    """The n-grams of one order, M of them; natural logs.

    Attributes:
        words: (M, order) int64.
        log_prob: (M,) float64.
        weight: (M,) float64, of backing off; 0 where the file gives none.
    """

    words: Tensor
    log_prob: Tensor
    weight: Tensor


def _to(tensors, device):
    """A dataclass with its tensors on a device."""
    values = {f.name: getattr(tensors, f.name) for f in fields(tensors)}
    moved = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
    return replace(tensors, **moved)


def _build(ngrams: list[ArpaNgrams], path: str | Path, v: int, unknown: float) -> NgramLm:
    """The model of an ARPA file's n-grams, by order."""
    order, one = len(ngrams), ngrams[0]
    words = one.words[:, 0]
    known = torch.zeros(v + 1, dtype=torch.bool)
    known[words] = True
    if not bool(known[v - 1] & known[v]):
        raise ConfigError(f"{path}: <s> and </s> are needed among the 1-grams")
    if not bool(known[2 : v - 1].any()):
        raise ConfigError(
            f"{path}: none of its words is a unit of this model; it has to be trained on text "
            "split into the tokenizer's tokens"
        )
    unigram = torch.full((v + 1,), unknown * math.log(10), dtype=torch.float64)
    unigram[words] = one.log_prob
    known[UNK] = True
    unigram[BLANK] = -math.inf
    unit = torch.where(known[:v], torch.arange(v), UNK)

    # States: 0, then the words of the 1-grams, then the longer n-grams below the highest order.
    node = torch.zeros(v + 1, dtype=torch.int64)
    weight = [torch.zeros(1, dtype=torch.float64)]
    if order > 1:
        at = known.nonzero()[:, 0]
        node[at] = torch.arange(1, len(at) + 1)
        bow = torch.zeros(v + 1, dtype=torch.float64)
        bow[words] = one.weight
        weight.append(bow[at])
    base = int(node.max()) + 1
    backoff = torch.zeros(base, dtype=torch.int64)
    end = torch.tensor([torch.iinfo(torch.int64).max])
    key, target, log_prob = end, end[:0], []
    for k, grams in enumerate(ngrams[1:], 2):
        inner = (grams.words[:, 1:] < v).all(1)  # <s> anywhere else is never met
        grams = ArpaNgrams(grams.words[inner], grams.log_prob[inner], grams.weight[inner])
        context = node[grams.words[:, 0]]
        for j in range(1, k - 1):
            at, hit = find(key, context * v + grams.words[:, j])
            _check(hit, grams, path, f"its first {j + 1} words are no {j + 1}-gram")
            context = at + base
        wanted, index = (context * v + grams.words[:, -1]).sort()
        twice = torch.cat([wanted[1:] == wanted[:-1], torch.zeros(1, dtype=torch.bool)])
        _check(~twice, replace(grams, words=grams.words[index]), path, "it is there twice")
        # What a longer context knows nothing of: the longest end of it that is a state.
        context, last = wanted // v, wanted % v
        shorter, found = context, torch.zeros_like(last)
        for _ in range(k - 2):
            shorter = backoff[shorter]
            at, hit = find(key, shorter * v + last)
            found = torch.where((found == 0) & hit, at + base, found)
        found = torch.where(found == 0, node[last], found)
        if k < order:
            target = torch.cat([target, torch.arange(len(wanted)) + base + len(target)])
            backoff = torch.cat([backoff, found])
            weight.append(grams.weight[index])
        else:
            target = torch.cat([target, found])
        key = torch.cat([key[:-1], wanted, end])
        log_prob.append(grams.log_prob[index])
    arcs = BackoffArcs.of(node[:v][unit], backoff, key[:-1], target)
    shortest = torch.arange(len(backoff))
    for _ in range(arcs.hops):
        shortest = torch.where(backoff[shortest] > 0, backoff[shortest], shortest)
    return NgramLm(
        arcs=arcs,
        unigram=unigram[:v].float(),
        log_prob=torch.cat([*log_prob, torch.zeros(1, dtype=torch.float64)]).float(),
        weight=torch.cat(weight).float(),
        shortest=shortest,
        unit=unit,
        missing=(~known[1:v]).nonzero()[:, 0] + 1,
        start=int(node[v]),
        order=order,
    )


def _check(good: Tensor, grams: ArpaNgrams, path: str | Path, reason: str) -> None:
    """Refuse a file for the first of the n-grams that is not good."""
    if not bool(good.all()):
        ids = grams.words[int((~good).nonzero()[0, 0])].tolist()
        raise ConfigError(f"{path}: {len(ids)}-gram of the units with ids {ids}: {reason}")


def read_arpa(path: str | Path, words: dict[bytes, int]) -> list[ArpaNgrams]:
    """The n-grams of an ARPA file, by order, those of known words only.

    Args:
        path: the file, gzipped or not.
        words: ids by their UTF-8.

    Raises:
        ConfigError: it is no ARPA file, or not a whole one.
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
    # Bytes, because their split knows no white space but ASCII's: a unit may look like some.
    lines = enumerate(file, 1)
    for _, line in lines:
        if line.strip() == b"\\data\\":
            break
    else:
        raise ConfigError(f"{path}: no ARPA file: it has no line \\data\\")
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
        raise ConfigError(f"{path}: no ARPA file: it counts no n-grams")
    result = []
    for order, count in enumerate(counts, 1):
        if title != b"\\%d-grams:" % order:
            raise ConfigError(f"{path}: not whole: expected \\{order}-grams:, got {title!r}")
        grams, rows, title = _section(lines, path, words, order)
        if rows != count:
            raise ConfigError(f"{path}: {rows} {order}-grams where {count} were announced")
        result.append(grams)
        if order == 1:  # what has no 1-gram is unknown
            named = set(grams.words[:, 0].tolist())
            words = {word: i for word, i in words.items() if i in named}
    if title != b"\\end\\":
        raise ConfigError(f"{path}: not whole: it does not end in \\end\\")
    return result


def _section(
    lines: Iterator[tuple[int, bytes]], path: str | Path, words: dict[bytes, int], order: int
) -> tuple[ArpaNgrams, int, bytes]:
    """The n-grams up to the next title, how many lines they were, and that title."""
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
