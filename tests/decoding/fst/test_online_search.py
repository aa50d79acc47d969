"""Search piece by piece, against the best of all paths and against Kaldi's search of the whole."""

import kaldifst
import numpy as np
import pytest

from speechattn.decoding.fst.kaldi_search import KaldiSearch, openfst
from speechattn.decoding.fst.online_search import OnlineSearch
from speechattn.decoding.fst.width import SearchWidth


def best_by_openfst(graph, scores):
    """Composition and shortest path: the events of the best path."""
    frames, vocab = scores.shape
    lines = [
        f"{t} {t + 1} {v + 1} {v + 1} {-scores[t, v]:.9g}"
        for t in range(frames)
        for v in range(vocab)
    ]
    fst = kaldifst.compile("\n".join([*lines, f"{frames} 0"]) + "\n", acceptor=False)
    best = kaldifst.shortest_path(kaldifst.compose(fst, openfst(graph)))
    (path,) = kaldifst.convert_nbest_to_vector(best)
    return list(kaldifst.get_linear_symbol_sequence(path)[2])


def run(search: OnlineSearch, scores: np.ndarray, sizes: list[int]):
    """What was sure after each piece, and the rest."""
    sure, start = [], 0
    while start < len(scores):
        size = sizes[len(sure) % len(sizes)]
        sure.append(search.accept(scores[start : start + size]))
        start += size
    return sure, search.finish()


def test_wide_search_finds_the_best_path(graph, tokenizer, draw):
    rng = np.random.default_rng(0)
    for frames in [1, 2, 3, 7, 20, 40] * 3:
        scores = draw(rng, frames, tokenizer.vocab_size)
        for sizes in ([frames], [1], [3, 0, 4]):
            search = OnlineSearch(graph, 1000.0, 100000)
            sure, rest = run(search, scores, sizes)
            found = [event for events in sure for event in events] + rest
            assert [event for event, _ in found] == best_by_openfst(graph, scores)
            starts = [start for _, start in found]
            assert starts == sorted(set(starts)) and all(0 <= s < frames for s in starts)


def test_narrow_search_is_kaldis(graph, tokenizer, draw):
    pytest.importorskip("kaldi_decoder")
    rng = np.random.default_rng(1)
    kaldi = KaldiSearch(graph, SearchWidth(beam=14.0, min_active=1, max_active=1000))
    for _ in range(6):
        scores = draw(rng, 200, tokenizer.vocab_size)
        path = kaldi.search(scores)
        search = OnlineSearch(graph, 14.0, 1000)
        sure, rest = run(search, scores, [5, 11])
        found = [event for events in sure for event in events] + rest
        assert graph.units(e for e, _ in found) == graph.units(path.events)
        if graph.topology == "standard":  # else runs of a label may be split anywhere
            assert [start for _, start in found] == list(path.starts)
        # Most is sure long before the end, and what is sure is forgotten.
        assert len(rest) < len(found) / 4
        assert search.size() < 1000


def test_no_way_on(graph, tokenizer):
    scores = np.full((1, tokenizer.vocab_size), -np.inf)
    with pytest.raises(ValueError, match="-inf"):
        OnlineSearch(graph, 10.0, 100).accept(scores)
