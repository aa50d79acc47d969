"""CTC prefix beam search against all paths, and against a search with dictionaries."""

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch

from speechattn.decoders import TransformerDecoder
from speechattn.decoding import DecoderScorer, ctc_greedy, token_times
from speechattn.decoding.ctc_beam import ctc_beam_search
from speechattn.decoding.ctc_frames import best_units

LENGTHS = torch.tensor([6, 0, 4, 5])


def posteriors(seed: int, b: int, t: int, v: int, sharp: float = 2.0, blank: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    logits = sharp * torch.randn(b, t, v, generator=generator)
    logits[..., 0] += blank
    return logits.log_softmax(-1)


def by_enumeration(log_probs: torch.Tensor) -> dict[tuple, float]:
    """log-probability of every text of one utterance, summed over all paths without <eos>."""
    t, v = log_probs.shape
    rows = log_probs.double().tolist()
    total = defaultdict(lambda: -math.inf)
    for path in product(range(v - 1), repeat=t):
        text = tuple(a for i, a in enumerate(path) if a and (i == 0 or a != path[i - 1]))
        score = sum(rows[i][a] for i, a in enumerate(path))
        total[text] = np.logaddexp(total[text], score)
    return total


class Bigram:
    """A table (V, V) of log-probabilities; the state is the last token."""

    def __init__(self, seed: int, v: int, batch: int):
        self.table = posteriors(seed, 1, v, v, blank=0.0)[0]
        self.batch = batch
        self.asked = 0

    def start(self):
        return torch.zeros(self.batch, dtype=torch.int64)

    def score(self, token, state):
        self.asked += len(token)
        return self.table[token], token

    def select(self, state, index):
        return state[index]

    def of(self, text: tuple) -> float:
        eos = len(self.table) - 1
        pairs = zip((eos, *text), (*text, eos), strict=True)
        return sum(self.table[a, b].item() for a, b in pairs)

    def prefix(self, text: tuple) -> float:
        return sum(
            self.table[a, b].item()
            for a, b in zip((len(self.table) - 1, *text), text, strict=False)
        )


@dataclass(frozen=True)
class History:
    tokens: torch.Tensor  # (N, U)


class Remembering(Bigram):
    """Depends on everything said so far; its states of different lengths cannot be joined."""

    def start(self):
        return History(torch.zeros(self.batch, 0, dtype=torch.int64))

    def score(self, token, state):
        tokens = torch.cat([state.tokens, token[:, None]], 1)
        return self.table[self.row(tokens.sum(1))], History(tokens)

    def select(self, state, index):
        return History(state.tokens[index])

    def row(self, total):
        return total * 7 % len(self.table)

    def prefix(self, text: tuple) -> float:
        said, score = len(self.table) - 1, 0.0
        for token in text:
            score += self.table[self.row(said), token].item()
            said += token
        return score

    def of(self, text: tuple) -> float:
        said = len(self.table) - 1 + sum(text)
        return self.prefix(text) + self.table[self.row(said), -1].item()


def slow_search(log_probs, k, s, bonus=0.0, scorers=(), skip=1.0):
    """One utterance, one prefix after another: [(score, text, ctc)], best first."""
    t, v = log_probs.shape
    beam = {(): (0.0, -math.inf)}

    def rank(text, ends, end=False):
        extra = sum(w * (x.of(text) if end else x.prefix(text)) for x, w in scorers)
        return np.logaddexp(*ends) + extra + bonus * len(text)

    for row in log_probs.double().tolist():
        sure = row[0] > math.log(skip)
        words = [] if sure else sorted(range(1, v - 1), key=lambda u: -row[u])
        new = defaultdict(lambda: [-math.inf, -math.inf])
        for text, (blank, label) in beam.items():
            total = np.logaddexp(blank, label)
            new[text][0] = np.logaddexp(new[text][0], total + row[0])
            if text and not sure:
                new[text][1] = np.logaddexp(new[text][1], label + row[text[-1]])
            for i, u in enumerate(words):
                grown = (*text, u)
                if i < s or grown in beam:
                    before = blank if text[-1:] == (u,) else total
                    new[grown][1] = np.logaddexp(new[grown][1], before + row[u])
        best = sorted(new, key=lambda text: -rank(text, new[text]))[:k]
        beam = {text: tuple(new[text]) for text in best}
    found = [(rank(x, ends, True), x, np.logaddexp(*ends)) for x, ends in beam.items()]
    return sorted(found, reverse=True)


def check(found, wanted, names=()):
    """Hypotheses against (score, text, ctc), as many of the latter as there are hypotheses."""
    assert len(found) <= len(wanted)
    for h, (score, text, ctc) in zip(found, wanted, strict=False):
        assert tuple(h.tokens) == text
        assert h.score == pytest.approx(score, abs=1e-5)
        assert h.scores["ctc"] == pytest.approx(ctc, abs=1e-5)
        assert h.scores["length"] == len(text)
        assert set(h.scores) == {"ctc", "length", *names}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("v", [3, 4, 5])
def test_a_wide_beam_sums_all_paths_of_every_text(seed, v):
    log_probs = posteriors(seed, 4, 6, v, blank=0.5)
    k = 5 if v == 3 else 700
    results = ctc_beam_search(log_probs, LENGTHS, beam_size=k, nbest=k, frame_units=0)
    for row, t in enumerate(LENGTHS.tolist()):
        texts = by_enumeration(log_probs[row, :t])
        assert len(results[row]) == len(texts)  # with repeats, and the empty one
        check(results[row], sorted(((s, x, s) for x, s in texts.items()), reverse=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "k, s, blank", [(1, 3, 2.0), (3, 1, 0.0), (4, 5, 3.0), (10, 8, 1.0), (7, 18, -2.0)], ids=str
)
def test_a_narrow_beam_keeps_what_the_slow_search_keeps(seed, k, s, blank):
    lengths = torch.tensor([25, 3, 0, 40, 17])
    log_probs = posteriors(seed, 5, 40, 20, blank=blank)
    results = ctc_beam_search(log_probs, lengths, beam_size=k, nbest=k, frame_units=s)
    for row, t in enumerate(lengths.tolist()):
        check(results[row], slow_search(log_probs[row, :t], k, s))
        assert len(results[row]) == (k if t else 1)


def test_units_that_are_few_come_back_to_prefixes_that_were_dropped():
    # With two words, prefixes leave the beam and return all the time.
    lengths = torch.tensor([60, 45])
    for seed in range(10):
        log_probs = posteriors(seed, 2, 60, 4, sharp=1.0, blank=0.0)
        results = ctc_beam_search(log_probs, lengths, beam_size=6, nbest=6)
        for row in range(2):
            wanted = slow_search(log_probs[row, : lengths[row]], 6, 2)
            check(results[row], wanted)
            assert len(results[row]) == 6


@pytest.mark.parametrize("kind", [Bigram, Remembering])
@pytest.mark.parametrize("weight, bonus", [(0.5, 0.0), (1.0, 1.5), (0.3, -0.4)])
def test_fused_scores_are_those_of_the_slow_search(kind, weight, bonus):
    lengths = torch.tensor([30, 0, 12, 21])
    log_probs = posteriors(8, 4, 30, 15)
    other = Bigram(5, 15, 4)
    for k, s in ((1, 13), (6, 5)):
        lm = kind(3, 15, 4)
        results = ctc_beam_search(
            log_probs,
            lengths,
            beam_size=k,
            nbest=3,
            frame_units=s,
            length_bonus=bonus,
            scorers={"lm": (lm, weight), "other": (other, 0.2), "unused": (other, 0.0)},
        )
        for row, t in enumerate(lengths.tolist()):
            wanted = slow_search(log_probs[row, :t], k, s, bonus, ((lm, weight), (other, 0.2)))
            check(results[row], wanted, ("lm", "other", "unused"))
            assert len(results[row]) == (min(k, 3) if t else 1)
            for h in results[row]:
                assert h.scores["lm"] == pytest.approx(lm.of(tuple(h.tokens)), abs=1e-4)
                assert h.scores["unused"] == pytest.approx(other.of(tuple(h.tokens)), abs=1e-4)


def test_a_length_bonus_alone():
    log_probs = posteriors(2, 1, 20, 10)
    found = ctc_beam_search(log_probs, torch.tensor([20]), beam_size=4, nbest=4, length_bonus=2.0)
    check(found[0], slow_search(log_probs[0], 4, 8, 2.0))


def test_a_prefix_that_a_scorer_forbids_is_not_found():
    log_probs = posteriors(4, 2, 25, 8, blank=-1.0)
    lm = Bigram(1, 8, 2)
    lm.table[:, 3] = -math.inf
    lm.table[2, 2] = -math.inf
    lengths = torch.tensor([25, 11])
    results = ctc_beam_search(log_probs, lengths, beam_size=5, nbest=5, scorers={"lm": (lm, 0.4)})
    for row, t in enumerate(lengths.tolist()):
        for h in results[row]:
            assert 3 not in h.tokens
            assert (2, 2) not in list(zip(h.tokens, h.tokens[1:], strict=False))
            assert math.isfinite(h.score)
        check(results[row], slow_search(log_probs[row, :t], 5, 6, 0.0, ((lm, 0.4),)), ("lm",))


def test_a_scorer_is_asked_once_for_each_prefix():
    log_probs = posteriors(0, 3, 30, 12, sharp=4.0, blank=8.0)
    lm = Bigram(3, 12, 3)
    k, lengths = 4, torch.tensor([30, 20, 30])
    ctc_beam_search(log_probs, lengths, beam_size=k, scorers={"lm": (lm, 0.1)})
    assert lm.asked < 0.5 * int(lengths.sum()) * k


def test_a_transformer_decoder_as_a_scorer():
    torch.manual_seed(0)
    v, lengths = 9, torch.tensor([14, 5, 9])
    decoder = TransformerDecoder(v, 8, 8, 2, linear_units=16, num_blocks=2).eval()
    hidden, log_probs = torch.randn(3, 14, 8), posteriors(6, 3, 14, v, blank=0.0)
    scorer = DecoderScorer(decoder, hidden, lengths)
    results = ctc_beam_search(
        log_probs, lengths, beam_size=4, nbest=4, scorers={"decoder": (scorer, 0.5)}
    )
    for row in range(3):
        for h in results[row]:
            fed = torch.tensor([[v - 1, *h.tokens]])
            t = lengths[row : row + 1]
            with torch.no_grad():
                logits = decoder(fed, torch.tensor([fed.size(1)]), hidden[row : row + 1, :t], t)
            wanted = logits.log_softmax(-1)[0].gather(1, torch.tensor([[*h.tokens, v - 1]]).T)
            assert h.scores["decoder"] == pytest.approx(wanted.sum().item(), abs=1e-4)
            score = h.scores["ctc"] + 0.5 * h.scores["decoder"]
            assert h.score == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("skip", [1.0, 0.7])
def test_a_ragged_batch_gives_what_single_utterances_give(skip):
    lengths = torch.tensor([9, 30, 0, 1, 22])
    log_probs = posteriors(3, 5, 30, 25, blank=6.0)
    log_probs[1, 4:9] = torch.tensor([0.0] + [-60.0] * 24).log_softmax(-1)

    def search(rows):
        lm = Bigram(1, 25, rows.stop - rows.start)
        t = max(1, int(lengths[rows].max()))
        return [
            ctc_beam_search(
                log_probs[rows, :t],
                lengths[rows],
                beam_size=5,
                nbest=5,
                frame_units=6,
                blank_skip=skip,
                scorers=scorers,
            )
            for scorers in (None, {"lm": (lm, 0.3)})
        ]

    together = search(slice(0, 5))
    if skip == 1:
        assert [[len(r) for r in x] for x in together] == [[5, 5, 1, 5, 5]] * 2
    for row in range(5):
        for whole, (alone,) in zip(together, search(slice(row, row + 1)), strict=True):
            assert [h.tokens for h in alone] == [h.tokens for h in whole[row]]
            for a, b in zip(alone, whole[row], strict=True):
                assert a.scores == pytest.approx(b.scores, abs=1e-6)
                assert a.score == pytest.approx(b.score, abs=1e-6)
    assert together == search(slice(0, 5))  # and the same every time


def test_skipped_frames_are_certain_blanks_and_cost_no_more_than_stated():
    lengths = torch.tensor([6, 0, 4, 6])
    lost = 0
    for seed in range(8):
        log_probs = posteriors(seed, 4, 6, 4, blank=2.0)
        for threshold in (0.5, 0.9):
            results = ctc_beam_search(
                log_probs, lengths, beam_size=200, nbest=200, blank_skip=threshold
            )
            for row, t in enumerate(lengths.tolist()):
                check(results[row], slow_search(log_probs[row, :t], 200, 2, skip=threshold))
                true = by_enumeration(log_probs[row, :t])
                n = int((log_probs[row, :t, 0].exp() > threshold).sum())
                found = {tuple(h.tokens): h.score for h in results[row]}
                gone = sum(math.exp(s) for s in true.values()) - sum(map(math.exp, found.values()))
                assert gone <= n * (1 - threshold) + 1e-9
                assert all(score <= true[text] + 1e-6 for text, score in found.items())
                lost += n
    assert lost > 50


def test_a_word_repeated_over_a_skipped_frame_is_two_words():
    sure = torch.tensor([-40.0, -40.0, 0.0, -40.0]).log_softmax(-1)
    blank = torch.tensor([0.0, -40.0, -40.0, -40.0]).log_softmax(-1)
    for frames, text in (([sure, blank, blank, sure], [2, 2]), ([blank, sure, sure, blank], [2])):
        found = ctc_beam_search(
            torch.stack(frames)[None], torch.tensor([4]), beam_size=3, blank_skip=0.99
        )
        assert found[0][0].tokens == text


def test_greedy_and_beam_hypotheses_have_times():
    lengths = torch.tensor([30, 8])
    log_probs = posteriors(1, 2, 30, 12, blank=2.0)
    beams = ctc_beam_search(log_probs, lengths, beam_size=4, nbest=4, blank_skip=0.95)
    for row, t in enumerate(lengths.tolist()):
        for h in [ctc_greedy(log_probs, lengths)[row], *beams[row]]:
            times = token_times(log_probs[row, :t], h.tokens, 0.04)
            assert [x.token for x in times] == h.tokens
            assert all(0 <= x.start < x.end <= t * 0.04 and 0 <= x.confidence <= 1 for x in times)


def test_no_frames_at_all_and_impossible_units():
    found = ctc_beam_search(torch.zeros(2, 0, 5), torch.tensor([0, 0]), beam_size=3, nbest=3)
    assert [[h.tokens for h in x] for x in found] == [[[]], [[]]]
    assert found[0][0].scores == {"ctc": 0.0, "length": 0.0}
    log_probs = torch.full((1, 3, 5), -math.inf)
    log_probs[0, [0, 1, 2], [2, 0, 2]] = 0.0
    found = ctc_beam_search(log_probs, torch.tensor([3]), beam_size=3, nbest=3)
    assert [(h.tokens, h.score) for h in found[0]] == [([2, 2], 0.0)]


@pytest.mark.parametrize(
    "options", [{"beam_size": 0}, {"nbest": 0}, {"frame_units": -1}, {"blank_skip": 0.0}], ids=str
)
def test_senseless_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ctc_beam_search(torch.zeros(1, 2, 5), torch.tensor([2]), **options)


@pytest.mark.parametrize("seed", [173, 329, 333])
def test_places_that_units_of_no_probability_leave_empty_stay_empty(seed):
    # A place is empty where fewer than K prefixes are possible; with these seeds one comes to
    # stand for a prefix that is there already.
    t, v, k = 4 + seed % 5, 4, 15
    generator = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(2, t, v, generator=generator)).log_softmax(-1)
    log_probs[torch.rand(log_probs.shape, generator=generator) < 0.3] = -math.inf
    lengths = torch.tensor([t, t - 2])
    for row, found in enumerate(ctc_beam_search(log_probs, lengths, beam_size=k, nbest=k)):
        wanted = slow_search(log_probs[row, : lengths[row]], k, v)
        wanted = [x for x in wanted if x[0] > -math.inf]
        if wanted:
            check(found, wanted)
            assert len(found) == len(wanted)
        else:
            assert [(h.tokens, h.score) for h in found] == [([], -math.inf)]


def test_an_impossible_utterance_says_nothing():
    """Every token but none at all is forbidden, and then that too."""
    log_probs = posteriors(0, 2, 12, 6)
    log_probs[1, 3] = -math.inf
    (possible, *_), (impossible, *more) = ctc_beam_search(
        log_probs, torch.tensor([12, 12]), beam_size=4, nbest=4
    )
    assert possible.tokens and possible.score > -math.inf
    assert (impossible.tokens, impossible.score, more) == ([], -math.inf, [])
    assert impossible.scores == {"ctc": -math.inf, "length": 0}


def test_nan_stays_in_its_utterance():
    log_probs = posteriors(0, 3, 12, 70)
    lengths = torch.tensor([12, 9, 4])
    wanted = ctc_beam_search(
        log_probs, lengths, beam_size=4, nbest=4, scorers={"lm": (Bigram(1, 70, 3), 0.3)}
    )
    log_probs[1, 5, 7] = math.nan
    found = ctc_beam_search(
        log_probs, lengths, beam_size=4, nbest=4, scorers={"lm": (Bigram(1, 70, 3), 0.3)}
    )
    assert [found[0], found[2]] == [wanted[0], wanted[2]]


@pytest.mark.parametrize(("v", "s"), [(3, 1), (66, 64), (200, 3), (514, 7), (1026, 16), (1000, 1)])
def test_thebest_units_of_frames(v, s):
    torch.manual_seed(v)
    rows, at = torch.randn(30, v), torch.tensor([4, 0, 29, 11, 12])
    rows[:, [0, v - 1]] = 9.0  # never asked for
    rows[11] = 0.0  # ties
    rows[12, 1:] = -math.inf
    found, which = best_units(rows, at, s)
    assert torch.equal(found.sort(1).values, rows[at, 1:-1].topk(s, dim=1).values.flip(1))
    assert torch.equal(found, rows[at[:, None], which])
    assert all(len(set(ids)) == s and {0, v - 1}.isdisjoint(ids) for ids in which.tolist())
    assert best_units(rows, at[:0], s)[0].shape == (0, s)
