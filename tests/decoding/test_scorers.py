"""CTC prefix scores against the sum over all alignments, and against the plain recursion."""

import math
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from speechattn.decoding import CtcPrefixScorer, scorers

BLANK = 0


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    merged = [a for i, a in enumerate(path) if i == 0 or a != path[i - 1]]
    return tuple(a for a in merged if a != BLANK)


def brute_force(log_probs: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Probability of each label sequence, over all V^T paths."""
    t, v = log_probs.shape
    p = log_probs.double().exp().tolist()
    total: dict[tuple[int, ...], float] = {}
    for path in product(range(v), repeat=t):
        labels = collapse(path)
        total[labels] = total.get(labels, 0.0) + math.prod(p[i][a] for i, a in enumerate(path))
    return total


def prefix_log_prob(total: dict, prefix: tuple[int, ...]) -> float:
    n = len(prefix)
    p = sum(value for labels, value in total.items() if labels[:n] == prefix)
    return math.log(p) if p > 0 else -math.inf


def log(p: float) -> float:
    return math.log(p) if p > 0 else -math.inf


@pytest.mark.parametrize("sharpness", [1.0, 5.0], ids=["flat", "sharp"])
def test_prefix_scores_sum_over_all_alignments(sharpness):
    torch.manual_seed(0)
    lengths, v = torch.tensor([5, 3, 1]), 4
    log_probs = (sharpness * torch.randn(3, 5, v)).log_softmax(-1)
    totals = [brute_force(log_probs[b, :t]) for b, t in enumerate(lengths.tolist())]
    scorer = CtcPrefixScorer(log_probs, lengths)
    state = scorer.start()
    prefixes: list[tuple[int, ...]] = [(), (), ()]
    rows = [0, 1, 2]
    checked = 0
    for _ in range(4):
        candidates = torch.tensor([[3, 2, 1, 0]]).expand(len(rows), -1)
        scores = scorer.score(candidates, state)
        for n, (b, prefix) in enumerate(zip(rows, prefixes, strict=True)):
            base = prefix_log_prob(totals[b], prefix)
            if base == -math.inf:
                assert (scores[n] == -math.inf).all()
                continue
            for s, token in enumerate([3, 2, 1]):
                if token == 3:  # the end of the utterance
                    wanted = log(totals[b].get(prefix, 0.0)) - base
                else:
                    wanted = prefix_log_prob(totals[b], (*prefix, token)) - base
                assert scores[n, s].item() == pytest.approx(wanted, abs=1e-4)
                checked += 1
            assert scores[n, 3] == -math.inf
        # Every hypothesis goes on with both tokens: 1 2 2, 1 1, ...
        index = torch.arange(len(rows)).repeat_interleave(2)
        token = torch.tensor([1, 2]).repeat(len(rows))
        state = scorer.extend(state, index, token)
        prefixes = [(*prefixes[i], a) for i, a in zip(index.tolist(), token.tolist(), strict=True)]
        rows = [rows[i] for i in index.tolist()]
    assert checked > 60


def recursion(x: torch.Tensor, tokens: list[int]) -> tuple[float, float]:
    """Algorithm 2 of the paper, frame by frame: log-probability as a prefix and as the whole."""
    x = x.double().tolist()
    t_max = len(x)

    def add(a: float, b: float) -> float:
        return torch.logaddexp(*torch.tensor([a, b], dtype=torch.float64)).item()

    label, blank = [-math.inf] * t_max, []
    for t in range(t_max):
        blank.append((blank[-1] if t else 0.0) + x[t][BLANK])
    prefix, last = 0.0, None
    for token in tokens:
        new_label, new_blank = [-math.inf] * t_max, [-math.inf] * t_max
        if last is None:
            new_label[0] = x[0][token]
        prefix = new_label[0]
        for t in range(1, t_max):
            phi = blank[t - 1] if token == last else add(label[t - 1], blank[t - 1])
            new_label[t] = add(new_label[t - 1], phi) + x[t][token]
            new_blank[t] = add(new_label[t - 1], new_blank[t - 1]) + x[t][BLANK]
            prefix = add(prefix, phi + x[t][token])
        label, blank, last = new_label, new_blank, token
    return prefix, add(label[-1], blank[-1])


@pytest.mark.parametrize("sharpness", [1.0, 30.0], ids=["flat", "sharp"])
def test_cumulative_sums_equal_the_recursion_over_many_frames(sharpness):
    torch.manual_seed(1)
    lengths, v = torch.tensor([400, 150]), 6
    log_probs = (sharpness * torch.randn(2, 400, v)).log_softmax(-1)
    tokens = [[1, 2, 2, 4, 1], [3, 3, 3, 1, 2]]
    scorer = CtcPrefixScorer(log_probs, lengths)
    state = scorer.start()
    score = torch.zeros(2, dtype=torch.float64)
    for u in range(5):
        token = torch.tensor([tokens[0][u], tokens[1][u]])
        score = score + scorer.score(token[:, None], state)[:, 0]
        state = scorer.extend(state, torch.tensor([0, 1]), token)
    ends = scorer.score(torch.full((2, 1), v - 1), state)[:, 0]
    for b in range(2):
        prefix, whole = recursion(log_probs[b, : lengths[b]], tokens[b])
        assert score[b].item() == pytest.approx(prefix, abs=1e-4)
        assert (score[b] + ends[b]).item() == pytest.approx(whole, abs=1e-4)


def test_padding_changes_nothing_and_no_nan():
    torch.manual_seed(2)
    log_probs = (4 * torch.randn(2, 30, 7)).log_softmax(-1)
    log_probs[0, 3, 2] = -math.inf
    lengths = torch.tensor([30, 12])
    together = CtcPrefixScorer(log_probs, lengths)
    alone = CtcPrefixScorer(log_probs[1:, :12], lengths[1:])
    a, b = together.start(), alone.start()
    everything = torch.arange(7)
    for token in [3, 3, 5, 2]:
        left = together.score(everything.expand(2, -1), a)
        right = alone.score(everything.expand(1, -1), b)
        assert not left.isnan().any()
        assert_close(left[1], right[0], atol=1e-5, rtol=0)
        a = together.extend(a, torch.tensor([0, 1]), torch.tensor([2, token]))
        b = alone.extend(b, torch.tensor([0]), torch.tensor([token]))


def test_more_tokens_than_frames_are_impossible():
    log_probs = torch.zeros(1, 2, 4).log_softmax(-1)
    scorer = CtcPrefixScorer(log_probs, torch.tensor([2]))
    state = scorer.start()
    zero = torch.tensor([0])
    for token in [1, 2]:
        state = scorer.extend(state, zero, torch.tensor([token]))
    scores = scorer.score(torch.tensor([[1, 2, 3]]), state)[0]
    assert (scores[:2] == -math.inf).all()
    assert scores[2].item() == pytest.approx(0.0, abs=1e-6)
    state = scorer.extend(state, zero, torch.tensor([1]))
    assert (scorer.score(torch.tensor([[1, 2, 3]]), state) == -math.inf).all()


@pytest.mark.parametrize("sharp", [1.0, 30.0, 200.0])
def test_sums_of_probabilities_and_of_logarithms_agree(sharp, monkeypatch):
    """Also where probabilities are too small for float32."""
    torch.manual_seed(0)
    lengths = torch.tensor([30, 12, 21])
    log_probs = (sharp * torch.randn(3, 30, 7)).log_softmax(-1)
    found = []
    for smallest in (scorers.SMALLEST_SUM, torch.inf):  # the second: all by logarithms
        monkeypatch.setattr(scorers, "SMALLEST_SUM", smallest)
        scorer = CtcPrefixScorer(log_probs, lengths)
        state, scores = scorer.start(), []
        candidates = torch.arange(1, 7).expand(3, -1)
        for token in ([1, 2, 3], [1, 4, 4], [2, 4, 5]):
            scores.append(scorer.score(candidates, state))
            state = scorer.extend(state, torch.arange(3), torch.tensor(token))
        found.append(torch.stack(scores))
    assert found[0].isfinite().any()
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-5)
