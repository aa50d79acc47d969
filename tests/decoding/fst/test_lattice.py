"""Lattices against all of their paths, one by one."""

import itertools
import math

import numpy as np
import pytest
import torch

from speechattn.decoding.fst.kaldi_search import KaldiSearch
from speechattn.decoding.fst.lattice import (
    Lattice,
    best,
    best_with_events,
    confidences,
    expanded,
    posteriors,
    total,
)
from speechattn.decoding.fst.nbest import nbest
from speechattn.decoding.fst.width import SearchWidth
from speechattn.decoding.fst.word_lm import WordLm
from speechattn.lm.ngram import NgramLm


def drawn(seed: int, frames: int = 5, states: int = 3) -> Lattice:
    """Some arcs between the states of a frame and those of the next, in a mixed order."""
    rng = np.random.default_rng(seed)
    rows = []
    for t in range(frames):
        for a, b in itertools.product(range(states if t else 1), range(states)):
            for _ in range(rng.integers(1, 3)):
                source = 0 if t == 0 else 1 + (t - 1) * states + a
                output = int(rng.integers(-3, 5))
                rows.append((source, 1 + t * states + b, rng.integers(0, 4), max(output, 0)))
    final = np.full(1 + frames * states, -np.inf)
    final[-2:] = rng.standard_normal(2)
    order = rng.permutation(len(rows))
    columns = np.array(rows)[order].T
    return Lattice.of((*columns, *rng.standard_normal((2, len(rows)))), final)


def paths(lattice: Lattice) -> list[tuple[list[int], float]]:
    """Every path that ends: its arcs and its score."""
    leaving = [np.flatnonzero(lattice.source == s).tolist() for s in range(lattice.states)]
    found = []

    def go(state: int, arcs: list[int], score: float) -> None:
        if np.isfinite(lattice.final[state]):
            found.append((arcs, score + float(lattice.final[state])))
        for i in leaving[state]:
            onward = score + float(lattice.graph[i]) + float(lattice.frame[i])
            go(int(lattice.target[i]), [*arcs, i], onward)

    go(0, [], 0.0)
    return found


def said(lattice: Lattice, arcs: list[int]) -> tuple[int, ...]:
    return tuple(int(lattice.output[i]) for i in arcs if lattice.output[i])


@pytest.fixture(params=range(3))
def lattice(request):
    return drawn(request.param)


def test_order(lattice):
    assert (lattice.source < lattice.target).all() and (np.diff(lattice.source) >= 0).all()
    assert (lattice.time[lattice.target] == lattice.time[lattice.source] + 1).all()


def test_best_and_total(lattice):
    every = paths(lattice)
    arcs, score = max(every, key=lambda path: path[1])
    found = best(lattice)
    assert found.score == pytest.approx(score, abs=1e-5) and found.events == said(lattice, arcs)
    assert list(found.labels) == [lattice.label[i] for i in arcs]
    assert list(found.starts) == [t for t, i in enumerate(arcs) if lattice.output[i]]
    frames = sum(float(lattice.frame[i]) for i in arcs)
    assert found.graph == pytest.approx(score - frames, abs=1e-5)
    whole = np.logaddexp.reduce([score for _, score in every])
    assert total(lattice) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_posteriors(lattice, scale):
    every = paths(lattice)
    weights = np.exp([scale * score for _, score in every])
    wanted = np.zeros(len(lattice))
    for (arcs, _), weight in zip(every, weights / weights.sum(), strict=True):
        wanted[arcs] += weight
    assert posteriors(lattice, scale) == pytest.approx(wanted, abs=1e-6)


def test_nbest_and_what_says_them(lattice):
    wanted = {}
    for arcs, score in paths(lattice):
        key = said(lattice, arcs)
        wanted[key] = max(score, wanted.get(key, -math.inf))
    order = sorted(wanted, key=lambda events: -wanted[events])[:7]
    found = nbest(lattice, 7)
    assert [path.events for path in found] == order
    for path in found:
        assert path.score == pytest.approx(wanted[path.events], abs=1e-5)
        assert len(path.starts) == len(path.events) and len(path.labels) == 5
    assert best_with_events(lattice, [9, 9]) is None


def test_nbest_of_more_sentences_than_can_be_listed():
    """Some 10^20 of them; each that is found is the best that the lattice has for it."""
    lattice = drawn(0, frames=40, states=6)
    found = nbest(lattice, 5)
    assert found[0].score == pytest.approx(best(lattice).score, abs=1e-4)
    assert len({path.events for path in found}) == 5
    scores = [path.score for path in found]
    assert scores == sorted(scores, reverse=True)
    assert [path.events for path in nbest(lattice, 2)] == [path.events for path in found[:2]]


def test_nothing_ends(lattice):
    blind = expanded(
        lattice, np.zeros(1), 1, lambda m, o: (m, np.zeros(len(m)), np.ones(len(m), bool))
    )
    lattice = blind.with_graph(lattice.graph[blind.arc], np.full(lattice.states, -np.inf))
    assert best(lattice) is None and total(lattice) == -np.inf and nbest(lattice, 3) == []


def test_confidences():
    """Three paths of two frames: both say 1, in either frame, and one says 2."""
    source, target = [0, 0, 0, 1, 2, 3], [1, 2, 3, 4, 5, 6]
    outputs = [1, 0, 2, 0, 1, 0]
    zero = np.zeros(6)
    final = np.array([-np.inf] * 4 + [math.log(0.5), math.log(0.3), math.log(0.2)])
    lattice = Lattice.of((source, target, outputs, outputs, zero, zero), final)
    share = posteriors(lattice)
    assert confidences(lattice, best_with_events(lattice, [1]), share) == pytest.approx([0.8])
    assert confidences(lattice, best_with_events(lattice, [2]), share) == pytest.approx([0.2])


def test_an_event_is_counted_near_itself_only():
    """A word said twice, and by other paths once, early or late."""
    source, target = [0, 1, 2, 0, 4, 5, 0, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8, 9]
    outputs = [1, 0, 1, 1, 0, 0, 0, 0, 1]
    zero = np.zeros(9)
    final = np.full(10, -np.inf)
    final[[3, 6, 9]] = np.log([0.6, 0.3, 0.1])
    lattice = Lattice.of((source, target, outputs, outputs, zero, zero), final)
    found = confidences(lattice, best(lattice), posteriors(lattice))
    assert found == pytest.approx([0.9, 0.7])


def test_a_larger_model(graph, arpa, draw, tokenizer):
    """Each path gets the model's probability of its words, by the n-gram model's own rows."""
    pytest.importorskip("kaldi_decoder")
    wide = KaldiSearch(graph, SearchWidth(1000.0, 1000.0, 100000, 20))
    scores = draw(np.random.default_rng(4), 4, tokenizer.vocab_size)
    lattice = wide.lattice(scores)
    lm = WordLm(arpa, graph.words)
    found = lm.rescored(lattice, graph, 0.5)
    plain = NgramLm.from_arpa(arpa, ["<blank>", "<unk>", *graph.words, "<sos/eos>"])

    def by_rows(events: tuple[int, ...]) -> float:
        state, score = torch.tensor([plain.start]), 0.0
        words = [w + 1 for event in events for w in graph.events[event - 1].words]
        for token in [*words, plain.vocab_size - 1]:
            score += float(plain.scores(state)[0, token])
            state = plain.step(state, torch.tensor([token]))
        return score

    old, new = (
        [(said(x, arcs), tuple(x.label[arcs]), arcs) for arcs, _ in paths(x)]
        for x in (lattice, found)
    )
    assert {path[:2] for path in old} == {path[:2] for path in new} and len(new) > 20
    for events, labels, arcs in new:
        share = float(found.graph[arcs].sum()) + float(found.final[found.target[arcs[-1]]])
        assert share == pytest.approx(0.5 * by_rows(events), abs=1e-4)
        assert found.frame[arcs].sum() == pytest.approx(scores[range(4), labels].sum(), abs=1e-4)
