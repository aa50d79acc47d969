"""Searches against each other, against all paths, and against how they are cut short."""

import itertools

import kaldifst
import numpy as np
import pytest

from speechattn.decoding.fst.k2py_search import K2pySearch, PrunedOptions
from speechattn.decoding.fst.kaldi_search import KaldiOptions, KaldiSearch, openfst
from speechattn.decoding.fst.nbest import nbest
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
    return KaldiSearch(graph, KaldiOptions(WIDE, WIDE, 20, 100000))


@pytest.fixture(scope="module")
def k2py(graph):
    pytest.importorskip("k2py")
    return K2pySearch(graph, PrunedOptions(WIDE, 8.0, 30, 100000))


def test_wide_searches_find_the_best_path(graph, kaldi, k2py, tokenizer, draw):
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
        other = k2py.search(scores)
        assert graph.units(other.events) == graph.units(events)
        assert graph.text(other.events) == graph.text(events)
        assert np.array_equal(other.labels, labels) and other.starts == found.starts
        assert other.score == pytest.approx(score, abs=1e-3)
        assert other.graph == pytest.approx(found.graph, abs=1e-3)
        frames = scores[np.arange(len(labels)), labels].sum()
        assert found.graph == pytest.approx(score - frames, abs=1e-3)


def test_frames_may_come_in_pieces(k2py, tokenizer, draw):
    scores = draw(np.random.default_rng(1), 31, tokenizer.vocab_size)
    whole = k2py.search(scores)
    stream = k2py.stream()
    for first, last in itertools.pairwise([0, 1, 1, 9, 30, 31]):
        stream.accept(scores[first:last])
    assert np.array_equal(stream.finish(), whole.labels) and len(whole.labels) == 31


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


def test_no_frames(kaldi, k2py, tokenizer):
    nothing = np.empty((0, tokenizer.vocab_size), np.float32)
    for found in (kaldi.search(nothing), k2py.search(nothing)):
        assert found.events == () and len(found.labels) == 0


def test_a_narrow_search_is_worse_and_never_better(graph, tokenizer, draw):
    narrow = KaldiSearch(graph, KaldiOptions(1.0, 1.0, 1, 2))
    worse = 0
    for seed in range(20):
        scores = draw(np.random.default_rng(seed), 12, tokenizer.vocab_size)
        *_, score = best_by_openfst(graph, scores)
        found = narrow.search(scores)
        assert not found.ended or found.score < score + 1e-3
        worse += found.ended and found.score < score - 1e-3
    assert worse


def test_options_are_checked():
    with pytest.raises(ConfigError, match="min_active"):
        PrunedOptions(min_active=0)
    with pytest.raises(ConfigError, match="above 0"):
        PrunedOptions(search_beam=0)
