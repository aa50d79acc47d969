"""N-gram language models over the model's units, read from ARPA files.

The units are the tokens of the model's tokenizer: `speechattn ngram` counts them, or KenLM's
`lmplz` on text that was split into them. For models of words see `word_ngram`.

Katz's back-off: an n-gram that is not in the model has the probability of the one a unit shorter,
times a weight of its context. So the scores after a context are the row of unigrams with a few
values written over it, once an order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from speechattn.errors import ConfigError
from speechattn.lm.arpa import ArpaNgrams, read_arpa
from speechattn.lm.backoff import BackoffArcs, find, move
from speechattn.units import BLANK, UNK

# log10 of an unknown unit's probability in a model without <unk>; KenLM's
UNKNOWN = -100.0


@dataclass(frozen=True)
class NgramLm:
    """A back-off n-gram model over V units; natural logs."""

    arcs: BackoffArcs  # of contexts: a state is the longest suffix of the history in the model
    unigram: Tensor  # (V,) float32, -inf for blank
    log_prob: Tensor  # (E + 1,) float32, of the longer n-grams
    weight: Tensor  # (S,) float32, what backing off from a state costs; 0 for state 0
    shortest: Tensor  # (S,) int64, the last state before 0 in the back-off of each state
    unit: Tensor  # (V,) int64, each unit itself, or <unk> where the model lacks it
    missing: Tensor  # int64, the units that it lacks; blank is not among them
    start: int  # the state after <s>
    order: int  # the longest n-gram's units

    @classmethod
    def from_arpa(
        cls, path: str | Path, tokens: Sequence[str], unknown: float = UNKNOWN
    ) -> "NgramLm":
        """Read an ARPA file, gzipped or not, of any order.

        The file's words have to be the tokenizer's tokens, spelt as in its `tokens.txt` (`<space>`
        and `▁` too). `<s>` is <sos> as a context, `</s>` is <eos>, `<unk>` or `<UNK>` is token 1. A
        token that the file lacks is an unknown word, as in KenLM: it scores as `<unk>` and is
        `<unk>` as a context. N-grams of words that are not tokens are dropped: no hypothesis can
        contain them.

        Args:
            path: the file.
            tokens: all V of them at their ids, `<blank>` first and `<sos/eos>` last.
            unknown: log10 of the probability of <unk>, for a file without it.

        Raises:
            ConfigError: it is not valid ARPA, and in which line; or it shares no word with the
                tokens.
        """
        v = len(tokens)
        words = {token.encode(): i for i, token in enumerate(tokens) if UNK < i < v - 1}
        special = {b"<unk>": UNK, b"<UNK>": UNK, b"</s>": v - 1, b"<s>": v}
        return _build(read_arpa(path, words | special), path, v, unknown)

    @property
    def vocab_size(self) -> int:
        """Return V."""
        return len(self.unit)

    def to(self, device: torch.device | str) -> "NgramLm":
        """Move to another device."""
        return replace(move(self, device), arcs=self.arcs.to(device))

    def step(self, state: Tensor, token: Tensor) -> Tensor:
        """Return the states (N,) after tokens (N,); <sos/eos> begins a sentence."""
        after = self.arcs.step(state, self.unit[token])
        return torch.where(token == self.vocab_size - 1, self.start, after)

    def score(self, state: Tensor, token: Tensor) -> Tensor:
        """Return the log-probability (N,) of a token (N,) after each state (N,), as in `scores`."""
        unit = self.unit[token]
        score = self.unigram[unit]
        for context in reversed(self.arcs.chain(state)):
            at, hit = find(self.arcs.key, context * self.vocab_size + unit)
            score = torch.where(hit, self.log_prob[at], score + self.weight[context])
        return score.clamp(max=0.0)

    def scores(self, state: Tensor) -> Tensor:
        """Return log-probabilities of all next tokens (N, V); none above 0, -inf for blank."""
        # Contexts of one unit have by far the most arcs, and the hypotheses of a beam share them.
        shared, at = torch.unique(self.shortest[state], return_inverse=True)
        paid = self.weight[shared]
        rows = self.unigram + paid[:, None]
        self.arcs.write(rows, shared, self.log_prob, torch.zeros_like(paid))
        # Longer contexts; the shared one is replaced by state 0, which has no arcs.
        chain = self.arcs.chain(state)[:-1]
        chain = [torch.where(context == shared[at], 0, context) for context in chain]
        offset = [torch.zeros_like(paid[at])]  # weights of backing off to a context
        for context in chain:
            offset.append(offset[-1] + self.weight[context])
        row = rows[at].add_(offset.pop()[:, None])  # (N, V)
        for context, paid in zip(reversed(chain), reversed(offset), strict=True):
            self.arcs.write(row, context, self.log_prob, paid)
        if len(self.missing):
            row[:, self.missing] = row[:, [UNK]]
        # Rounding in the file must not give a probability above 1.
        return row.clamp_(max=0.0)


class _States:
    """Contexts and arcs of a model in the making.

    State 0 comes first, then the words of the 1-grams, then the longer n-grams below the highest
    order, order by order.

    Args:
        ngrams: of an ARPA file, by order.
        path: the file, for messages.
        v: V; `<s>` is the word V.
        known: (V + 1,) bool, the words with a 1-gram.
    """

    def __init__(self, ngrams: list[ArpaNgrams], path: str | Path, v: int, known: Tensor):
        self.path, self.v, self.order = path, v, len(ngrams)
        self.node = torch.zeros(v + 1, dtype=torch.int64)  # the state of each word
        self.weight = [torch.zeros(1, dtype=torch.float64)]
        if self.order > 1:
            at = known.nonzero()[:, 0]
            self.node[at] = torch.arange(1, len(at) + 1)
            bow = torch.zeros(v + 1, dtype=torch.float64)
            bow[ngrams[0].words[:, 0]] = ngrams[0].weight
            self.weight.append(bow[at])
        self.base = int(self.node.max()) + 1  # the state of the first arc
        self.backoff = torch.zeros(self.base, dtype=torch.int64)
        self.end = torch.tensor([torch.iinfo(torch.int64).max])
        self.key, self.target = self.end, self.end[:0]
        self.log_prob: list[Tensor] = []
        for k, grams in enumerate(ngrams[1:], 2):
            self.add(k, grams)

    def add(self, k: int, grams: ArpaNgrams) -> None:
        """Add the n-grams of order `k`."""
        v, base = self.v, self.base
        inner = (grams.words[:, 1:] < v).all(1)  # <s> occurs only at the start
        grams = ArpaNgrams(grams.words[inner], grams.log_prob[inner], grams.weight[inner])
        context = self.node[grams.words[:, 0]]
        for j in range(1, k - 1):
            at, hit = find(self.key, context * v + grams.words[:, j])
            self.check(hit, grams.words, f"its first {j + 1} words are no {j + 1}-gram")
            context = at + base
        keys, index = (context * v + grams.words[:, -1]).sort()
        twice = torch.cat([keys[1:] == keys[:-1], torch.zeros(1, dtype=torch.bool)])
        self.check(~twice, grams.words[index], "it is there twice")
        # The target is the longest suffix that is a state.
        context, last = keys // v, keys % v
        shorter, suffix = context, torch.zeros_like(last)
        for _ in range(k - 2):
            shorter = self.backoff[shorter]
            at, hit = find(self.key, shorter * v + last)
            suffix = torch.where((suffix == 0) & hit, at + base, suffix)
        suffix = torch.where(suffix == 0, self.node[last], suffix)
        if k < self.order:
            new = torch.arange(len(keys)) + base + len(self.target)
            self.target = torch.cat([self.target, new])
            self.backoff = torch.cat([self.backoff, suffix])
            self.weight.append(grams.weight[index])
        else:
            self.target = torch.cat([self.target, suffix])
        self.key = torch.cat([self.key[:-1], keys, self.end])
        self.log_prob.append(grams.log_prob[index])

    def check(self, good: Tensor, words: Tensor, reason: str) -> None:
        """Refuse the file for the first of the n-grams `words` that is not good."""
        if not bool(good.all()):
            ids = words[int((~good).nonzero()[0, 0])].tolist()
            raise ConfigError(f"{self.path}: {len(ids)}-gram of the units with ids {ids}: {reason}")


def _build(ngrams: list[ArpaNgrams], path: str | Path, v: int, unknown: float) -> NgramLm:
    """Build the model of an ARPA file's n-grams, by order."""
    words = ngrams[0].words[:, 0]
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
    unigram[words] = ngrams[0].log_prob
    known[UNK] = True
    unigram[BLANK] = -math.inf
    unit = torch.where(known[:v], torch.arange(v), UNK)
    states = _States(ngrams, path, v, known)
    arcs = BackoffArcs.of(states.node[:v][unit], states.backoff, states.key[:-1], states.target)
    shortest = torch.arange(len(arcs.backoff))
    for _ in range(arcs.hops):
        shorter = arcs.backoff[shortest]
        shortest = torch.where(shorter > 0, shorter, shortest)
    return NgramLm(
        arcs=arcs,
        unigram=unigram[:v].float(),
        log_prob=torch.cat([*states.log_prob, torch.zeros(1, dtype=torch.float64)]).float(),
        weight=torch.cat(states.weight).float(),
        shortest=shortest,
        unit=unit,
        missing=(~known[1:v]).nonzero()[:, 0] + 1,
        start=int(states.node[v]),
        order=len(ngrams),
    )
