"""Searches against each other, against all paths, and against how they are cut short."""

import kaldifst
import numpy as np
import pytest

from speechattn.decoding.fst.kaldi_search import KaldiSearch, openfst
from speechattn.decoding.fst.nbest import nbest
from speechattn.decoding.fst.width import SearchWidth
from speechattn.errors import ConfigError

WIDE = 1000.0


def best_by_openfst(graph, scores):
    """Composition and shortest path: the events and the score of the best path."""
    frames, vocab = scores.shape
    lines = [
        f"{t} {t + 1} {v + 1} {v + 1} {-scores[t, v]:.9g}"
        for t in range(frames)
        for v in range(vocab)
    ]
    fst = kaldifst.compile("\n".join([*lines, f"{frames} 0"]) + "\n", acceptor=False)
    best = kaldifst.shortest_path(kaldifst.compose(fst, openfst(graph)))
    (path,) = kaldifst.convert_nbest_to_vector(best)
    _, labels, events, cost = kaldifst.get_linear_symbol_sequence(path)
    return tuple(events), np.array(labels) - 1, -cost.value


@pytest.fixture(scope="module")
def kaldi(graph):
    pytest.importorskip("kaldi_decoder")
    return KaldiSearch(graph, SearchWidth(WIDE, WIDE, 100000, 20))


def test_wide_searches_find_the_best_path(graph, kaldi, tokenizer, draw):
    rng = np.random.default_rng(0)
    for frames in [1, 2, 3, 7, 20] * 4:
        scores = draw(rng, frames, tokenizer.vocab_size)
        events, labels, score = best_by_openfst(graph, scores)
        found = kaldi.search(scores)
        assert found.events == events and found.score == pytest.approx(score, abs=1e-4)
        assert np.array_equal(found.labels, labels)
        starts = [t for t in range(frames) if labels[t] and (t == 0 or labels[t] != labels[t - 1])]
        if graph.topology == "standard":
            assert list(found.starts) == starts
        frames = scores[np.arange(len(labels)), labels].sum()
        assert found.graph == pytest.approx(score - frames, abs=1e-3)


def test_nbest_are_the_best_of_all(graph, kaldi, tokenizer, draw):
    """Against every sequence of events that OpenFst finds, each with its best path."""
    rng = np.random.default_rng(2)
    for frames in (2, 5):
        scores = draw(rng, frames, tokenizer.vocab_size)
        lines = [
            f"{t} {t + 1} {v + 1} {v + 1} {-scores[t, v]:.9g}"
            for t in range(frames)
            for v in range(tokenizer.vocab_size)
        ]
        fst = kaldifst.compile("\n".join([*lines, f"{frames} 0"]) + "\n", acceptor=False)
        everything = kaldifst.shortest_path(kaldifst.compose(fst, openfst(graph)), n=100000)
        wanted = {}
        for path in kaldifst.convert_nbest_to_vector(everything):
            _, _, events, cost = kaldifst.get_linear_symbol_sequence(path)
            wanted[tuple(events)] = max(-cost.value, wanted.get(tuple(events), -np.inf))
        best = sorted(wanted.items(), key=lambda item: -item[1])[:6]
        found = nbest(kaldi.lattice(scores), 6)
        assert [path.score for path in found] == pytest.approx([s for _, s in best], abs=1e-3)
        assert len({path.events for path in found}) == len(found) == len(best)
        for path in found:
            assert path.score == pytest.approx(wanted[path.events], abs=1e-3)


def test_no_frames(kaldi, tokenizer):
    nothing = np.empty((0, tokenizer.vocab_size), np.float32)
    found = kaldi.search(nothing)
    assert found.events == () and len(found.labels) == 0


def test_a_narrow_search_is_worse_and_never_better(graph, tokenizer, draw):
    narrow = KaldiSearch(graph, SearchWidth(1.0, 1.0, 2, 1))
    worse = 0
    for seed in range(20):
        scores = draw(np.random.default_rng(seed), 12, tokenizer.vocab_size)
        *_, score = best_by_openfst(graph, scores)
        found = narrow.search(scores)
        assert not found.ended or found.score < score + 1e-3
        worse += found.ended and found.score < score - 1e-3
    assert worse


def test_options_are_checked():
    for name in ("beam", "lattice_beam", "max_active"):
        with pytest.raises(ConfigError, match=f"{name} has to be above 0"):
            SearchWidth(**{name: 0})
    assert SearchWidth(max_active=5).least_active(20) == 5
    assert SearchWidth(min_active=3).least_active(20) == 3
