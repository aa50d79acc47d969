"""A delay penalty in a search, against all sequences of frames."""

import numpy as np
import pytest

from speechattn.decoding.fst.kaldi_search import KaldiSearch
from speechattn.decoding.fst.onsets import delayed, with_onsets
from speechattn.decoding.fst.width import SearchWidth

PENALTY = 1.5


def walked(graph, labels, scores) -> dict[tuple[int, ...], float]:
    """The best score of each sequence of events that these frames can be, by the definition."""
    arcs, first = graph.arcs, graph.arcs.first()
    found = {(0, ()): 0.0}
    for t, label in enumerate(labels):
        onward = {}
        for (state, said), total in found.items():
            for i in range(first[state], first[state + 1]):
                if arcs.label[i] != label:
                    continue
                event = int(arcs.output[i])
                late = PENALTY * (t - len(labels) // 2) if event else 0.0
                key = int(arcs.target[i]), (*said, event) if event else said
                score = total + float(arcs.score[i]) + float(scores[t, label]) - late
                onward[key] = max(score, onward.get(key, -np.inf))
        found = onward
    ended = {}
    for (state, said), total in found.items():
        score = total + float(graph.arcs.final[state])
        ended[said] = max(score, ended.get(said, -np.inf))
    return ended


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_the_best_path_is_the_definitions(graph, tokenizer, draw, frames):
    pytest.importorskip("kaldi_decoder")
    moved = with_onsets(graph)
    kaldi = KaldiSearch(moved, SearchWidth(1000.0, 1000.0, 100000, 20))
    plain = KaldiSearch(graph, SearchWidth(1000.0, 1000.0, 100000, 20))
    changed = 0
    for seed in range(4):
        scores = draw(np.random.default_rng(seed), frames, tokenizer.vocab_size)
        wanted = -np.inf, ()
        for labels in np.ndindex(*[tokenizer.vocab_size] * frames):
            for said, score in walked(graph, labels, scores).items():
                wanted = max(wanted, (score, said))
        found = kaldi.search(delayed(scores, PENALTY))
        assert found.events == wanted[1]
        assert found.score == pytest.approx(wanted[0], abs=1e-3)
        without = plain.search(scores)
        changed += (found.events, found.starts) != (without.events, without.starts)
    assert changed or frames < 5


def test_no_penalty_is_the_plain_search(graph, tokenizer, draw):
    pytest.importorskip("kaldi_decoder")
    scores = draw(np.random.default_rng(7), 15, tokenizer.vocab_size)
    found = KaldiSearch(with_onsets(graph)).search(delayed(scores, 0.0))
    plain = KaldiSearch(graph).search(scores)
    assert (found.events, found.starts) == (plain.events, plain.starts)
