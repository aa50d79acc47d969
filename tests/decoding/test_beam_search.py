"""Joint search against enumeration, scored by torch's CTC loss and the parallel decoder."""

from itertools import product

import pytest
import torch
from torch.nn.functional import ctc_loss

from speechattn.decoders import TransformerDecoder
from speechattn.decoding import JointSearch
from speechattn.decoding.beam_search import _Search, length_limits
from speechattn.model.output import ModelOutput

V, D = 5, 8
EOS = V - 1
LENGTHS = torch.tensor([4, 3, 1])


class Pieces:
    """A decoder and CTC outputs of random weights."""

    def __init__(self, seed: int, lengths: torch.Tensor = LENGTHS, v: int = V, sharp: float = 2.0):
        torch.manual_seed(seed)
        self.decoder = TransformerDecoder(v, D, 16, 2, linear_units=32, num_blocks=1).eval()
        torch.nn.init.normal_(self.decoder.output.weight, std=0.5)
        self.hidden = torch.randn(len(lengths), int(lengths.max()), D)
        self.log_probs = (sharp * torch.randn(*self.hidden.shape[:2], v)).log_softmax(-1)
        self.lengths = lengths

    @torch.no_grad()
    def search(self, rows=slice(None), **options):
        lengths = self.lengths[rows]
        t = int(lengths.max())
        evidence = ModelOutput(
            self.hidden[rows, :t], lengths, self.log_probs[rows, :t], self.decoder
        )
        return JointSearch(**options).search([evidence])

    @torch.no_grad()
    def score(self, row: int, tokens: tuple[int, ...]) -> tuple[float, float]:
        """Decoder and CTC log-probability of a whole sequence."""
        t = self.lengths[row : row + 1]
        v = self.log_probs.size(-1)
        inputs = torch.tensor([[v - 1, *tokens]])
        lengths = torch.tensor([len(tokens) + 1])
        hidden = self.hidden[row : row + 1, : int(t)]
        out = self.decoder(inputs, lengths, hidden, t).log_softmax(-1)[0]
        attention = sum(out[u, a].item() for u, a in enumerate([*tokens, v - 1]))
        ctc = -ctc_loss(
            self.log_probs[row, : int(t)].double(),
            torch.tensor(tokens, dtype=torch.int64),
            t,
            torch.tensor([len(tokens)]),
            reduction="sum",
        ).item()
        return attention, ctc

    def enumerate(self, row: int, least: int, most: int, weight: float, bonus: float):
        found = []
        for u in range(least, most + 1):
            for tokens in product(range(1, self.log_probs.size(-1) - 1), repeat=u):
                attention, ctc = self.score(row, tokens)
                parts = ((1 - weight) * attention if weight < 1 else 0.0) + (
                    weight * ctc if weight > 0 else 0.0
                )
                found.append((parts + bonus * (u + 1), list(tokens), attention, ctc))
        return sorted(found, reverse=True)


@pytest.mark.parametrize(
    "weight, bonus",
    [(0.3, 0.0), (0.0, 0.0), (1.0, 0.0), (0.5, 0.8), (0.3, -0.5)],
    ids=["joint", "attention", "ctc", "bonus", "malus"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_wide_beam_finds_the_best_of_all(weight, bonus, seed):
    pieces = Pieces(seed)
    results = pieces.search(
        beam_size=200, ctc_weight=weight, length_bonus=bonus, nbest=3, pre_beam_ratio=1.0
    )
    for row, t in enumerate(LENGTHS.tolist()):
        wanted = pieces.enumerate(row, 0, t, weight, bonus)
        assert len(results[row]) == 3
        for hypothesis, (score, tokens, attention, ctc) in zip(results[row], wanted, strict=False):
            assert hypothesis.tokens == tokens
            assert hypothesis.score == pytest.approx(score, abs=1e-4)
            assert hypothesis.scores["length"] == len(tokens) + 1
            if weight < 1:
                assert hypothesis.scores["decoder"] == pytest.approx(attention, abs=1e-4)
            if weight > 0:
                assert hypothesis.scores["ctc"] == pytest.approx(ctc, abs=1e-4)


def test_limits_of_length_and_the_best_within_them():
    pieces = Pieces(3)
    options = dict(beam_size=200, nbest=2, min_length_ratio=0.67, max_length_ratio=0.75)
    results = pieces.search(**options)
    least, most = length_limits(LENGTHS, options["min_length_ratio"], options["max_length_ratio"])
    assert (least.tolist(), most.tolist()) == ([2, 2, 0], [3, 2, 1])
    for row in range(3):
        wanted = pieces.enumerate(row, int(least[row]), int(most[row]), 0.3, 0.0)
        assert [h.tokens for h in results[row]] == [w[1] for w in wanted[:2]]
        assert results[row][0].score == pytest.approx(wanted[0][0], abs=1e-4)


def test_a_ragged_batch_gives_what_single_utterances_give():
    lengths = torch.tensor([17, 3, 30, 1, 11])
    pieces = Pieces(5, lengths, v=20)
    for options in (
        dict(beam_size=5, nbest=4),
        dict(beam_size=3, ctc_weight=0.0, min_length_ratio=0.3, max_length_ratio=0.6),
        dict(beam_size=1, length_bonus=0.4),
        dict(beam_size=4, ctc_weight=1.0),
    ):
        together = pieces.search(**options)
        for row in range(5):
            (alone,) = pieces.search(slice(row, row + 1), **options)
            assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
            for a, b in zip(alone, together[row], strict=True):
                assert a.score == pytest.approx(b.score, abs=1e-4)
                assert a.scores == pytest.approx(b.scores, abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"ctc_weight": 0.0}, {"length_bonus": -0.2}], ids=str)
def test_ending_early_changes_nothing(options, monkeypatch):
    lengths = torch.tensor([25, 14, 20, 6])
    found = [Pieces(seed, lengths, v=12).search(beam_size=4, **options) for seed in range(4)]

    def never(self, beam, ended, recent, remaining):
        return beam.score.amax(1) == -torch.inf

    monkeypatch.setattr(_Search, "_done", never)
    for seed in range(4):
        everything = Pieces(seed, lengths, v=12).search(beam_size=4, **options)
        for one, other in zip(found[seed], everything, strict=True):
            assert one[0].tokens == other[0].tokens
            assert one[0].score == pytest.approx(other[0].score, abs=1e-4)


def test_scores_of_a_narrow_beam_are_true_scores():
    lengths = torch.tensor([12, 9])
    pieces = Pieces(7, lengths, v=10)
    for row, hypotheses in enumerate(pieces.search(beam_size=3, nbest=3, length_bonus=0.1)):
        assert len({tuple(h.tokens) for h in hypotheses}) == len(hypotheses)
        assert sorted((h.score for h in hypotheses), reverse=True) == [h.score for h in hypotheses]
        for h in hypotheses:
            attention, ctc = pieces.score(row, tuple(h.tokens))
            assert h.scores["decoder"] == pytest.approx(attention, abs=1e-4)
            assert h.scores["ctc"] == pytest.approx(ctc, abs=1e-3)
            score = 0.7 * attention + 0.3 * ctc + 0.1 * (len(h.tokens) + 1)
            assert h.score == pytest.approx(score, abs=1e-3)


def test_silence_is_read_as_nothing():
    pieces = Pieces(0)
    pieces.log_probs = torch.tensor([8.0] + [0.0] * (V - 1)).log_softmax(-1).expand(3, 4, V)
    with torch.no_grad():
        pieces.decoder.output.bias[EOS] += 20
    assert [h[0].tokens for h in pieces.search()] == [[], [], []]


def test_a_least_length_that_ctc_cannot_reach_is_given_up_with_a_warning(caplog):
    pieces = Pieces(0, torch.tensor([4]))
    # All frames can only be token 1 or blank: one token at the most in two frames.
    pieces.log_probs = torch.full((1, 4, V), -torch.inf)
    pieces.log_probs[..., :2] = torch.tensor([0.5, 0.5]).log()
    (hypotheses,) = pieces.search(min_length_ratio=0.9, beam_size=2)
    assert "min_length_ratio" in caplog.text
    assert set(hypotheses[0].tokens) <= {1} and len(hypotheses[0].tokens) <= 2


@pytest.mark.parametrize("weight", [0.3, 0.0, 1.0])
def test_two_models_are_searched_as_one(weight):
    """The best by the weighted sum of what each model says alone; their frames differ in number."""
    one, other = Pieces(0), Pieces(1, torch.tensor([3, 4, 2]))
    evidence = [
        ModelOutput(p.hidden, p.lengths, p.log_probs, p.decoder, weight=share, name=name)
        for p, share, name in ((one, 0.4, "a"), (other, 0.6, "b"))
    ]
    options = JointSearch(beam_size=800, ctc_weight=weight, nbest=2, pre_beam_ratio=1.0)
    with torch.no_grad():
        results = options.search(evidence)
    for row, t in enumerate((4, 4, 2)):
        scores = [
            {tuple(tokens): score for score, tokens, *_ in pieces.enumerate(row, 0, t, weight, 0.0)}
            for pieces in (one, other)
        ]
        total = {k: 0.4 * v + 0.6 * scores[1][k] for k, v in scores[0].items()}
        best = sorted(total, key=lambda k: -total[k])[:2]
        assert [tuple(h.tokens) for h in results[row]] == best
        for h, tokens in zip(results[row], best, strict=True):
            assert h.score == pytest.approx(total[tokens], abs=1e-4)
            parts = 0.4 * (1 - weight) * h.scores.get("decoder.a", 0.0)
            parts += 0.6 * (1 - weight) * h.scores.get("decoder.b", 0.0)
            parts += weight * (0.4 * h.scores.get("ctc.a", 0) + 0.6 * h.scores.get("ctc.b", 0))
            assert h.score == pytest.approx(parts, abs=1e-4)
