"""NgramLm against a plain back-off over a dictionary of the file's lines."""

import gzip
import itertools
import math
import random

import pytest
import torch
from torch.testing import assert_close

from speechattn.decoding.beam_search import beam_search
from speechattn.errors import ConfigError
from speechattn.lm.ngram import NgramLm
from speechattn.lm.scorers import NgramScorer

# White space that is not ASCII's is a unit like others. "q" and "zz" are in no file.
TOKENS = ["<blank>", "<unk>", "<space>", "\u2581a", "b", "q", "\u3000", "\x85c", "d", "zz"]
TOKENS += ["<sos/eos>"]
V, EOS = len(TOKENS), len(TOKENS) - 1
LN10 = math.log(10)


def arpa_text(grams):
    """An ARPA file of {words: (log10, weight or None)}."""
    order = max(map(len, grams))
    lines = ["", "\\data\\"]
    by_order = [[g for g in grams if len(g) == k] for k in range(1, order + 1)]
    lines += [f"ngram {k}={len(group)}" for k, group in enumerate(by_order, 1)]
    for k, group in enumerate(by_order, 1):
        lines += ["", f"\\{k}-grams:"]
        for gram in group:
            prob, weight = grams[gram]
            tail = "" if weight is None else f"\t{weight}"
            lines.append(f"{prob}\t{' '.join(gram)}{tail}")
    return "\n".join([*lines, "", "\\end\\", ""])


def random_grams(seed, order, unk=True):
    """N-grams with all their beginnings but not all their ends, as pruned models have them."""
    rng = random.Random(seed)
    words = [*(t for t in TOKENS[2:-1] if t not in ("q", "zz")), "x", "</s>"]
    words += ["<unk>"] if unk else []

    def weight():
        return rng.choice([None, round(rng.uniform(-1.5, 0.2), 6)])

    grams = {(w,): (round(rng.uniform(-3, -1), 6), weight()) for w in [*words, "<s>"]}
    for k in range(2, order + 1):
        contexts = [g for g in grams if len(g) == k - 1 and g[-1] != "</s>"]
        for context in rng.sample(contexts, max(1, len(contexts) * 2 // 3)):
            for word in rng.sample(words, rng.randint(1, 4)):
                end = weight() if k < order else None
                grams[(*context, word)] = (round(rng.uniform(-2, -0.5), 6), end)
    return grams


def log10(grams, context, word):
    """The definition: as the file says, or a unit less of context."""
    if (*context, word) in grams:
        return grams[*context, word][0]
    if not context:
        return -100.0
    return (grams.get(context, (0, None))[1] or 0.0) + log10(grams, context[1:], word)


def wanted_row(grams, history):
    def known(token):
        word = {"<sos/eos>": "</s>"}.get(token, token)
        return word if (word,) in grams else "<unk>"

    order = max(map(len, grams))
    said = ["<s>", *(known(TOKENS[i]) for i in history)]
    context = tuple(said[max(0, len(said) - order + 1) :]) if order > 1 else ()
    row = [min(0.0, LN10 * log10(grams, context, known(t))) for t in TOKENS]
    return [-math.inf, *row[1:]]


def write(tmp_path, grams):
    path = tmp_path / "lm.arpa"
    path.write_text(arpa_text(grams), encoding="utf-8", newline="\n")
    return path


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("unk", [True, False])
def test_rows_and_states(tmp_path, order, unk):
    grams = random_grams(order, order, unk)
    text = arpa_text(grams).encode()
    path = tmp_path / "lm.arpa.gz"
    path.write_bytes(gzip.compress(text.replace(b"\n", b"\r\n") if unk else text))
    lm = NgramLm.from_arpa(path, TOKENS)
    assert (lm.order, lm.vocab_size) == (order, V)
    rng = random.Random(0)
    # Half of the sentences follow the file's longest n-grams, or deep contexts would be rare.
    ids = {token: i for i, token in enumerate(TOKENS)}
    known = [[ids[w] for w in g if w in ids] for g in grams if len(g) == order]
    sentences = [
        [rng.randrange(1, EOS) for _ in range(9)]
        if n % 2
        else [*itertools.chain(*rng.sample(known, min(9, len(known))), [1] * 9)][:9]
        for n in range(40)
    ]
    scorer = NgramScorer(lm, 40)
    state, token = scorer.start(), torch.full((40,), EOS)
    deepest = 0
    for u in range(9):
        rows, state = scorer.score(token, state)
        assert rows.shape == (40, V)
        wanted = torch.tensor([wanted_row(grams, s[:u]) for s in sentences])
        assert_close(rows, wanted, atol=2e-5, rtol=1e-5)
        deepest = max(deepest, int((lm.arcs.first[state + 1] > lm.arcs.first[state]).sum()))
        picked = torch.tensor(rng.choices(range(40), k=40))  # drops, repeats and reorders
        sentences = [sentences[i] for i in picked.tolist()]
        state = scorer.select(state, picked)
        token = torch.tensor([s[u] for s in sentences])
    assert order == 1 or deepest > 10


def test_by_hand(tmp_path):
    grams = {
        ("<s>",): (-99, -0.5),
        ("</s>",): (-1.0, None),
        ("b",): (-0.7, -0.25),
        ("d",): (-0.9, None),
        ("<s>", "b"): (-0.1, -0.125),
        ("b", "d"): (-0.3, None),
        ("<s>", "b", "</s>"): (-0.2, None),
    }
    lm = NgramLm.from_arpa(write(tmp_path, grams), TOKENS)
    b, d = TOKENS.index("b"), TOKENS.index("d")
    state = lm.step(torch.zeros(1, dtype=torch.int64), torch.tensor([EOS]))
    first = lm.scores(state)[0] / LN10
    assert_close(first[[b, d, EOS, 1, 5]], torch.tensor([-0.1, -1.4, -1.5, -100.5, -100.5]))
    second = lm.scores(lm.step(state, torch.tensor([b])))[0] / LN10
    assert_close(second[[b, d, EOS]], torch.tensor([-0.125 - 0.25 - 0.7, -0.125 - 0.3, -0.2]))
    assert second[0] == -math.inf


def test_all_of_it_moves_to_a_device(tmp_path):
    lm = NgramLm.from_arpa(write(tmp_path, random_grams(3, 3)), TOKENS).to("meta")
    tensors = [x for part in (lm, lm.arcs) for x in vars(part).values() if torch.is_tensor(x)]
    assert len(tensors) == 11 and all(x.is_meta for x in tensors)


def test_probabilities_above_one_are_cut(tmp_path):
    grams = {("<s>",): (-99, 0.5), ("</s>",): (-0.1, None), ("b",): (-1.0, None)}
    lm = NgramLm.from_arpa(write(tmp_path, grams | {("<s>", "b"): (-1.0, None)}), TOKENS)
    row = lm.scores(lm.step(torch.zeros(1, dtype=torch.int64), torch.tensor([EOS])))[0]
    assert row[EOS] == 0.0


def test_fusion_finds_what_enumeration_finds(tmp_path):
    """Two utterances with acoustic scores of their own, at full beam."""
    grams = random_grams(7, 3)
    lm = NgramLm.from_arpa(write(tmp_path, grams), TOKENS)
    torch.manual_seed(0)
    table = (2 * torch.randn(2, 4, V)).log_softmax(-1)  # by utterance and place

    class Acoustic:
        def start(self):
            return torch.stack([torch.arange(2), torch.zeros(2, dtype=torch.int64)])

        def score(self, token, state):
            return table[state[0], state[1]], state + torch.tensor([[0], [1]])

        def select(self, state, index):
            return state[:, index]

    full = {"acoustic": (Acoustic(), 1.0), "ngram": (NgramScorer(lm, 2), 0.6)}
    found = beam_search(
        full, {}, lengths=torch.tensor([3, 2]), vocab_size=V, beam_size=2000, nbest=5
    )
    # The model sees two tokens back, so a sentence that began before them may begin anyhow.
    histories = [
        (u, h) for u in range(4) for h in itertools.product(range(1, EOS), repeat=min(u, 2))
    ]
    rows = {(u < 2, *h): wanted_row(grams, h if u < 2 else (2, *h)) for u, h in histories}
    for b, most in enumerate([3, 2]):
        scored = []
        for length in range(most + 1):
            for tokens in itertools.product(range(1, EOS), repeat=length):
                total = 0.0
                for u, token in enumerate([*tokens, EOS]):
                    total += table[b, u, token].item()
                    total += 0.6 * rows[u < 2, *tokens[max(0, u - 2) : u]][token]
                scored.append((total, list(tokens)))
        scored.sort(reverse=True)
        assert [h.tokens for h in found[b]] == [tokens for _, tokens in scored[:5]]
        assert [h.score for h in found[b]] == pytest.approx([s for s, _ in scored[:5]], abs=1e-4)


BASE = {("<s>",): (-99, -0.5), ("</s>",): (-1.0, None), ("b",): (-0.7, -0.25)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("\\data\\", ""), "no line"),
        (lambda t: t.replace("\\end\\", ""), "incomplete"),
        (lambda t: t.replace("\\2-grams:", ""), r"lm.arpa:13: expected a log-prob"),
        (lambda t: t.replace("ngram 1=3", "ngram 1=4"), "3 1-grams where 4"),
        (lambda t: t.replace("ngram 1=3", "n 1=3"), r"lm.arpa:3: expected 'ngram 1"),
        (lambda t: t.replace("-0.7\tb", "high\tb"), r"lm.arpa:10: .*'high"),
        (lambda t: t.replace("-0.7\tb", "nan\tb"), r"lm.arpa:10: .*'nan"),
        (lambda t: t.replace("-1.0\t</s>", "-1.0\tb"), "</s> are needed"),
        (lambda t: t.replace("b", "elsewhere"), "none of its words"),
        (lambda t: t.replace("<s> b\n", "<s> b\n-0.1\t<s> b\n").replace("2=1", "2=2"), "twice"),
        (lambda t: t.replace("<s> b\n", "<s> <s>\n"), "no 2-gram"),
    ],
)
def test_files_that_are_refused(tmp_path, change, message):
    grams = BASE | {("<s>", "b"): (-0.1, None), ("<s>", "b", "b"): (-0.1, None)}
    text = change(arpa_text(grams))
    (tmp_path / "lm.arpa").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        NgramLm.from_arpa(tmp_path / "lm.arpa", TOKENS)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        NgramLm.from_arpa(tmp_path / "none.arpa", TOKENS)
    packed = gzip.compress(arpa_text(BASE).encode())
    (tmp_path / "cut.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ConfigError, match="cannot be read"):
        NgramLm.from_arpa(tmp_path / "cut.gz", TOKENS)
