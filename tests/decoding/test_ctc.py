"""CTC greedy search by hand, forced alignment against enumeration and torchaudio."""

import math
from itertools import product

import pytest
import torch

from speechattn.decoding import AlignmentError, ctc_forced_align, ctc_greedy
from speechattn.decoding.ctc import ctc_best_path, merge_blanks


def one_hot(*labels: int, v: int = 5) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), v).float().mul(9).log_softmax(-1)


def test_greedy_merges_repeats_and_drops_blanks():
    paths = [[1, 1, 0, 1, 2, 2], [0, 0, 3, 3, 3, 0], [0, 0, 0, 0, 0, 0], [2, 2, 2, 0, 2, 2]]
    log_probs = torch.stack([one_hot(*path) for path in paths])
    found = ctc_greedy(log_probs, torch.tensor([6, 4, 6, 3]))
    assert [h.tokens for h in found] == [[1, 1, 2], [3], [], [2]]
    best = one_hot(1).max().item()
    assert [h.score for h in found] == pytest.approx(
        [6 * best, 4 * best, 6 * best, 3 * best], abs=1e-5
    )


def test_greedy_never_says_eos_and_reads_nothing_from_no_frames():
    log_probs = one_hot(4, 4, 4)[None]
    log_probs[0, 1, 2] = log_probs[0, 1, 0] + 0.5
    assert ctc_greedy(log_probs, torch.tensor([3]))[0].tokens == [2]
    assert ctc_greedy(log_probs, torch.tensor([0]))[0].tokens == []
    assert ctc_greedy(log_probs, torch.tensor([1]))[0].tokens == []


def best_by_enumeration(log_probs: torch.Tensor, tokens: list[int]) -> float:
    t, v = log_probs.shape
    best = -math.inf
    rows = log_probs.double().tolist()
    for path in product(range(v), repeat=t):
        merged = [a for i, a in enumerate(path) if i == 0 or a != path[i - 1]]
        if [a for a in merged if a] == tokens:
            best = max(best, sum(rows[i][a] for i, a in enumerate(path)))
    return best


@pytest.mark.parametrize("tokens", [[], [1], [2, 2], [1, 2, 1], [3, 3, 1], [1, 2, 3, 1, 2]])
def test_best_path_is_the_best_of_all(tokens):
    torch.manual_seed(len(tokens))
    log_probs = (2 * torch.randn(6, 4)).log_softmax(-1)
    states, score = ctc_best_path(log_probs, tokens)
    assert score == pytest.approx(best_by_enumeration(log_probs, tokens), abs=1e-5)
    spans = ctc_forced_align(log_probs, tokens)
    assert [span.token for span in spans] == tokens
    path = torch.zeros(6, dtype=torch.int64)
    for span in spans:
        assert (path[span.start : span.end] == 0).all()
        path[span.start : span.end] = span.token
        mean = log_probs[span.start : span.end, span.token].exp().mean().item()
        assert span.score == pytest.approx(mean, abs=1e-6)
    assert log_probs[torch.arange(6), path].sum().item() == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("u", [1, 4, 12])
def test_alignment_equals_torchaudio(u):
    functional = pytest.importorskip(
        "torchaudio.functional", reason="pip install torchaudio to compare with its aligner"
    )
    if not hasattr(functional, "forced_align"):
        pytest.skip("this torchaudio has no forced_align")
    torch.manual_seed(u)
    log_probs = (3 * torch.randn(60, 9)).log_softmax(-1)
    tokens = torch.randint(1, 9, (u,))
    path, scores = functional.forced_align(log_probs[None], tokens[None], blank=0)
    states, score = ctc_best_path(log_probs, tokens.tolist())
    assert score == pytest.approx(scores.sum().item(), abs=1e-3)
    label = torch.zeros(2 * u + 1, dtype=torch.int64)
    label[1::2] = tokens
    assert torch.equal(label[states], path[0].long())


def test_alignment_at_the_edges():
    assert ctc_forced_align(one_hot(0, 0), []) == []
    assert ctc_forced_align(torch.zeros(0, 4), []) == []
    (span,) = ctc_forced_align(one_hot(2), [2])
    assert (span.token, span.start, span.end) == (2, 0, 1)
    # A blank has to stand between equal tokens, however improbable.
    for log_probs in (one_hot(2, 0, 2), one_hot(2, 2, 2)):
        first, second = ctc_forced_align(log_probs, [2, 2])
        assert (first.start, first.end, second.start, second.end) == (0, 1, 2, 3)


def test_too_few_frames_are_an_error_that_says_so():
    with pytest.raises(AlignmentError, match="2 frames cannot .* 2 tokens.* at least 3"):
        ctc_forced_align(one_hot(2, 2), [2, 2])
    with pytest.raises(AlignmentError, match="0 frames"):
        ctc_forced_align(torch.zeros(0, 4), [1])
    with pytest.raises(ValueError, match="1..4"):
        ctc_forced_align(one_hot(1, 1), [0])
    impossible = one_hot(1, 1)
    impossible[:, 3] = -math.inf
    with pytest.raises(AlignmentError, match="probability 0"):
        ctc_forced_align(impossible, [3])


def spelt(log_probs: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Probability of each label sequence, over all paths."""
    t, v = log_probs.shape
    p = log_probs.double().exp().tolist()
    total: dict[tuple[int, ...], float] = {}
    for path in product(range(v), repeat=t):
        merged = [a for i, a in enumerate(path) if i == 0 or a != path[i - 1]]
        labels = tuple(a for a in merged if a)
        total[labels] = total.get(labels, 0.0) + math.prod(p[i][a] for i, a in enumerate(path))
    return total


def test_merged_blanks_lose_no_more_than_stated():
    torch.manual_seed(0)
    log_probs = torch.randn(3, 7, 3)
    for b, frames in enumerate(([0, 1, 4, 5], [2, 4], [])):  # sure blanks
        log_probs[b, frames, 0] += 6
    log_probs = log_probs.log_softmax(-1)
    lengths = torch.tensor([7, 5, 4])
    threshold = 0.97
    merged, merged_lengths = merge_blanks(log_probs, lengths, threshold)
    assert merged_lengths.tolist() == [5, 5, 4]
    for b, t in enumerate(lengths.tolist()):
        wanted = spelt(log_probs[b, :t])
        found = spelt(merged[b, : int(merged_lengths[b])])
        n = int((log_probs[b, :t, 0].exp() > threshold).sum())
        lost = sum(wanted.values()) - sum(found.values())
        assert -1e-6 < lost <= n * (1 - threshold)
        assert (lost > 1e-6) == (n > 0)
        for labels, p in wanted.items():
            assert -1e-6 <= p - found.get(labels, 0.0) <= n * (1 - threshold)


def test_merged_blanks_still_part_repeats():
    log_probs = one_hot(2, 0, 0, 0, 2)[None]
    merged, lengths = merge_blanks(log_probs, torch.tensor([5]), 0.9)
    assert lengths.tolist() == [3]
    assert ctc_greedy(merged, lengths)[0].tokens == [2, 2]


def test_nothing_merged_is_nothing_changed():
    log_probs = torch.randn(2, 6, 4).log_softmax(-1)
    lengths = torch.tensor([6, 3])
    merged, merged_lengths = merge_blanks(log_probs, lengths, 1.0)
    assert merged_lengths.tolist() == [6, 3]
    assert torch.equal(merged[0], log_probs[0])
    assert torch.equal(merged[1, :3], log_probs[1, :3])
