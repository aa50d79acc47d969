"""Counted n-gram models: Chen and Goodman's formulas by brute force, and values worked by hand."""

import gzip
import logging
import math
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest
import torch

from speechattn.data.tokenizers import CharTokenizer
from speechattn.errors import ConfigError
from speechattn.lm.ngram import NgramLm
from speechattn.lm.ngram_training import discounts, train_ngram
from speechattn.lm.perplexity import ngram_perplexity
from speechattn.lm.texts import TokenLines

UNITS = "abcdefgh"


def corpus(seed=0, lines=60):
    """Texts that like some successions more than others; some are a unit long, one has none."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(lines):
        text, at = "", 0
        for _ in range(rng.integers(1, 9)):
            at = (at + rng.choice([0, 1, 2, 5], p=[0.1, 0.5, 0.25, 0.15])) % 7
            text += UNITS[at]
        texts.append(text)
    return texts


class BruteForce:
    """p(unit | context) straight from the paper's recursion, over dictionaries."""

    def __init__(self, texts, order, units, min_count=1):
        self.order, self.size, self.min_count = order, len(units) + 2, min_count
        self.seen = Counter()
        before = defaultdict(set)
        for text in texts:
            words = ["<s>", *text, "</s>"]
            for i in range(len(words)):
                for n in range(1, order + 1):
                    gram = tuple(words[i : i + n])
                    if len(gram) == n:
                        self.seen[gram] += 1
                        if i:
                            before[gram].add(words[i - 1])
        self.count = {}
        for gram, seen in self.seen.items():
            raw = len(gram) == order or gram[0] == "<s>"
            self.count[gram] = seen if raw else len(before[gram])
        self.count.pop(("<s>",))
        self.taken = {}
        for n in range(1, order + 1):
            have = Counter(c for g, c in self.count.items() if len(g) == n)
            n1, n2, n3, n4 = (have[i] for i in (1, 2, 3, 4))
            if n1 and n2 and n3:
                y = n1 / (n1 + 2 * n2)
                d = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            if not (n1 and n2 and n3) or min(d) <= 0:
                d = [0.5, 1.0, 1.5]
            self.taken[n] = d

    @cache  # noqa: B019
    def prob(self, unit, context):
        if len(context) >= self.order:
            context = context[-self.order + 1 :] if self.order > 1 else ()
        n = len(context) + 1
        follow = {
            g[-1]: c for g, c in self.count.items() if len(g) == n and g[:-1] == tuple(context)
        }
        kept = {
            w for w in follow if n < 3 or self.seen[(*context, w)] >= self.min_count
        }  # fmt: skip
        lower = self.prob(unit, context[1:]) if context else 1 / self.size
        if not kept:
            return lower
        total = sum(follow.values())

        def rest(w):
            return follow[w] - self.taken[n][min(follow[w], 3) - 1]

        back = 1 - sum(rest(w) for w in kept) / total
        return (rest(unit) / total if unit in kept else 0.0) + back * lower


def count(tmp_path, texts, order, min_count=1, name="lm.arpa"):
    tokenizer = CharTokenizer(["<blank>", "<unk>", *UNITS, "<sos/eos>"])
    tokenizer.save(tmp_path / "tokens")
    (tmp_path / "text.txt").write_text("\n".join(texts) + "\n")
    train_ngram(
        [tmp_path / "text.txt"],
        tmp_path / "tokens",
        tmp_path / name,
        order=order,
        min_count=min_count,
    )
    return NgramLm.from_arpa(tmp_path / name, tokenizer.tokens), tokenizer


def log_probs(lm, tokenizer, context):
    """Of all units after a sentence's beginning."""
    state = torch.tensor([lm.start])
    for token in tokenizer.encode(context):
        state = lm.step(state, torch.tensor([token]))
    return lm.scores(state)[0]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("min_count", [1, 2])
def test_against_brute_force(order, min_count, tmp_path):
    texts = corpus()
    lm, tokenizer = count(tmp_path, texts, order, min_count)
    reference = BruteForce(texts, order, UNITS, min_count)
    # What begins sentences, what is in the midst of them, and what was never seen; h never was.
    for context in ("", "a", "b", "ab", "abc", "cabcd", "gg", "h", "ah", "hab", "bdb"):
        found = log_probs(lm, tokenizer, context)
        whole = ("<s>", *context)
        for i, unit in enumerate(["<unk>", *UNITS, "</s>"], 1):
            # A context that was never seen is left out, as Katz's back-off does too.
            wanted = reference.prob(unit, whole[-(order - 1) :] if order > 1 else ())
            assert found[i].item() == pytest.approx(math.log(wanted), abs=2e-5), (context, unit)
        assert found[0] == -math.inf
        assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_by_hand(tmp_path, caplog):
    """Two sentences, `a b` and `a c`, by pairs; too few to tell the discounts: 0.5, 1, 1.5.

    Units that stand before: a has <s>; b has a; c has a; </s> has b and c. So unigram counts are
    1, 1, 1, 2, of 5 in all; 0.5 * 3 + 1 are taken, so 2.5 / 5 is left for all ten units (eight,
    <unk> and </s>), 0.05 each. p(b) = 0.5 / 5 + 0.05 = 0.15 = p(a); p(</s>) = 1 / 5 + 0.05 = 0.25.
    After a: b and c once each, 2 in all; 1 is taken, half of it: p(b|a) = 0.5 / 2 + 0.5 * 0.15.
    After <s>: a twice; 1 is taken: p(a|<s>) = 1 / 2 + 0.5 * 0.15.
    After b: </s> once; 0.5 is taken: p(</s>|b) = 0.5 + 0.5 * 0.25.
    """
    lm, tokenizer = count(tmp_path, ["ab", "ac"], 2)
    assert "2-grams: too few" in caplog.text
    a, b = tokenizer.encode("ab")
    after = {context: log_probs(lm, tokenizer, context).exp() for context in ("", "a", "b", "h")}
    for context, token, wanted in (
        ("", a, 0.575),
        ("", b, 0.075),
        ("a", b, 0.325),
        ("a", lm.vocab_size - 1, 0.125),
        ("b", lm.vocab_size - 1, 0.625),
        ("h", a, 0.15),
        ("h", 1, 0.05),  # <unk>, as any other that was never seen
    ):
        assert after[context][token].item() == pytest.approx(wanted, abs=1e-6)
    lines = TokenLines.of(["ab", "h", ""], tokenizer)
    found = ngram_perplexity(lm, lines)
    wanted = (0.575, 0.325, 0.625, 0.5 * 0.05, 0.25, 0.5 * 0.25)
    assert found.log_prob == pytest.approx(sum(map(math.log, wanted)), abs=1e-5)
    assert found.token == pytest.approx(math.exp(-found.log_prob / 6), abs=1e-9)


def test_discounts():
    """n1 = 8, n2 = 4, n3 = 2, n4 = 1: Y = 1/2, so 1 - 1/2, 2 - 3/4 and 3 - 1."""
    counts = np.repeat([0, 1, 2, 3, 4, 9], [7, 8, 4, 2, 1, 3])
    assert discounts(counts, 1) == pytest.approx([0.5, 1.25, 2.0])


def test_a_ragged_batch_is_its_sentences(tmp_path, monkeypatch):
    texts = corpus(1)
    lm, tokenizer = count(tmp_path, texts, 3)
    some = [*texts[:9], "", "hhh", "xyz"]
    together = ngram_perplexity(lm, TokenLines.of(some, tokenizer))
    alone = [ngram_perplexity(lm, TokenLines.of([text], tokenizer)) for text in some]
    assert together.log_prob == pytest.approx(sum(p.log_prob for p in alone), abs=1e-4)
    assert together.unknown == 3 and together.tokens == sum(map(len, some))
    monkeypatch.setattr("speechattn.lm.perplexity.MAX_SCORES", 1)
    apart = ngram_perplexity(lm, TokenLines.of(some, tokenizer))
    assert apart.log_prob == pytest.approx(together.log_prob, abs=1e-4)


def test_files(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    texts = corpus()
    lm, tokenizer = count(tmp_path, texts, 3)
    packed, _ = count(tmp_path, texts, 3, name="lm.arpa.gz")
    assert gzip.open(tmp_path / "lm.arpa.gz").read() == (tmp_path / "lm.arpa").read_bytes()
    assert torch.equal(packed.log_prob, lm.log_prob)
    assert not list(tmp_path.glob(".*partial*"))
    # Nothing of four units is seen so often: the model is one of three.
    small, _ = count(tmp_path, ["abc", "abd", "hgf"], 4, 2)
    assert small.order == 3
    for arguments, message in (
        ({"order": 0}, "--order 0"),
        ({"order": 11}, "--order 11"),
        ({"min_count": 0}, "--min-count 0"),
        ({"texts": [tmp_path / "none.txt"]}, "cannot be read as text"),
    ):
        arguments = {"texts": [tmp_path / "text.txt"], **arguments}
        with pytest.raises(ConfigError, match=message):
            train_ngram(tokenizer_dir=tmp_path / "tokens", output=tmp_path / "x", **arguments)
    assert not (tmp_path / "x").exists()
