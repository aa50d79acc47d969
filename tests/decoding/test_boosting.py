"""ContextGraph against one hypothesis at a time, from the definition: no trie, no links."""

import random

import pytest
import torch
from torch.testing import assert_close

from speechattn.decoding.beam_search import beam_search
from speechattn.decoding.boosting import BoostScorer, ContextGraph
from speechattn.errors import ConfigError

V = 7
EOS = V - 1


def held(phrases, text):
    """The most of an unfinished phrase at the text's end; 0 where there is none."""
    return max(
        (
            score * k
            for phrase, score in phrases
            for k in range(1, len(phrase))
            if text[-k:] == phrase[:k]
        ),
        default=0.0,
    )


def ended(phrases, text):
    """What the phrases add of which the last token is the text's."""
    return sum(score * len(p) for p, score in phrases if text[-len(p) :] == p)


def wanted_row(phrases, text):
    before = held(phrases, text)
    row = [
        held(phrases, [*text, t]) + ended(phrases, [*text, t]) - before if t > 1 else -before
        for t in range(V)
    ]
    row[EOS] = -before
    return row


def random_phrases(rng, units, scores):
    """Of few units: prefixes of each other, repeats within themselves, ends that begin others."""
    phrases = {}
    for _ in range(rng.randint(1, 9)):
        phrase = tuple(rng.choice(units) for _ in range(rng.randint(1, 5)))
        phrases[phrase] = rng.choice(scores)
    return [(list(phrase), score) for phrase, score in phrases.items()]


@pytest.mark.parametrize("seed", range(12))
def test_rows_states_and_totals(seed):
    rng = random.Random(seed)
    units = [2, 3] if seed % 2 else [2, 3, 4, 5]
    scores = [1.5] if seed % 3 else [0.5, 1.0, 3.0]
    phrases = random_phrases(rng, units, scores)
    graph = ContextGraph.build([p for p, _ in phrases], V, scores=[s for _, s in phrases])
    scorer = BoostScorer(graph, 3)
    state, token = scorer.start(), torch.full((3,), EOS)
    texts, totals, largest = [[]] * 3, torch.zeros(3), 0.0
    for _ in range(30):
        rows, state = scorer.score(token, state)
        assert rows.shape == (len(texts), V)
        wanted = torch.tensor([wanted_row(phrases, text) for text in texts])
        assert_close(rows, wanted, atol=1e-5, rtol=0)
        largest = max(largest, rows.max().item())
        # Whatever was advanced is taken back: what is left at the end are whole phrases.
        whole = [sum(ended(phrases, text[:u]) for u in range(1, len(text) + 1)) for text in texts]
        assert_close(
            totals + rows[:, EOS], torch.tensor(whole, dtype=torch.float32), atol=1e-3, rtol=0
        )
        index = torch.tensor(rng.choices(range(len(texts)), k=5))
        token = torch.tensor([rng.choice([1, *units, *units, *units]) for _ in range(5)])
        state = scorer.select(state, index)
        totals = totals[index] + rows[index, token]
        texts = [[*texts[i], t] for i, t in zip(index.tolist(), token.tolist(), strict=True)]
    assert largest <= scorer.bonus + 1e-5


def test_bonus_is_reached_and_no_larger_than_the_token_score():
    graph = ContextGraph.build([[2, 3, 4], [5, 3]], V, 1.5)
    assert graph.bonus == pytest.approx(1.5)  # an advance is not held beside what it became
    nested = ContextGraph.build([[2, 3], [2, 3, 4, 5]], V, 1.0)
    state = nested.step(torch.tensor([0]), torch.tensor([2]))
    assert nested.scores(state)[0, 3] == nested.bonus == 3.0  # 2 for the one, 1 for the other


def test_by_hand():
    graph = ContextGraph.build([[2, 3, 4], [3, 5]], V)
    state, added = torch.tensor([0]), []
    for token in [2, 3, 5, 2, 2, 3, 4, EOS]:
        added.append(graph.scores(state)[0, token].item())
        state = graph.step(state, torch.tensor([token]))
    # 2 3 held 2; 5 ends the second phrase, which began at 3; 2 again begins anew and holds as much.
    assert added == [1, 1, 0, 1, 0, 1, 1, 0]
    assert sum(added) == 5 and state.item() == 0


def test_a_phrase_twice_and_no_phrase():
    once = ContextGraph.build([[2, 3]], V, scores=[2.0])
    twice = ContextGraph.build([[2, 3], [2, 3]], V, scores=[1.0, 2.0])
    for state in range(3):
        assert_close(once.scores(torch.tensor([state])), twice.scores(torch.tensor([state])))
    empty = ContextGraph.build([], V)
    rows, _ = BoostScorer(empty, 2).score(torch.tensor([EOS, EOS]), torch.tensor([0, 0]))
    assert rows.eq(0).all() and empty.bonus == 0


@pytest.mark.parametrize("phrase", [[], [0, 2], [1], [2, EOS], [V]])
def test_phrases_that_cannot_be_spelt(phrase):
    with pytest.raises(ConfigError, match="phrase"):
        ContextGraph.build([[2, 3], phrase], V)


@pytest.mark.parametrize("score", [0.0, -1.0, float("inf"), float("nan")])
def test_scores_that_are_none(score):
    with pytest.raises(ConfigError, match="score"):
        ContextGraph.build([[2]], V, score)


def test_all_of_it_moves_to_a_device():
    graph = ContextGraph.build([[2, 3]], V).to("meta")
    tensors = [x for part in (graph, graph.arcs) for x in vars(part).values() if torch.is_tensor(x)]
    assert len(tensors) == 8 and all(x.is_meta for x in tensors)


def test_a_phrase_wins_in_the_search():
    """Between two readings that sound nearly alike the boosted one is found, whole."""

    class Acoustic:
        def __init__(self):
            sound = torch.full((4, V), -9.0)
            for place, (best, second) in enumerate([(2, 4), (3, 5), (2, 4), (EOS, EOS)]):
                sound[place, best], sound[place, second] = -0.1, -0.6
            sound[3, EOS] = -0.1
            self.sound = sound

        def start(self):
            return torch.zeros(1, dtype=torch.int64)

        def score(self, token, state):
            return self.sound[state], state + 1

        def select(self, state, index):
            return state[index]

    def best(phrases):
        boost = BoostScorer(ContextGraph.build(phrases, V), 1)
        full = {"acoustic": (Acoustic(), 1.0), "boost": (boost, 1.0)}
        return beam_search(full, {}, lengths=torch.tensor([3]), vocab_size=V, beam_size=3)[0][0]

    assert best([]).tokens == [2, 3, 2]
    found = best([[4, 5, 4]])
    assert found.tokens == [4, 5, 4]
    assert found.scores["boost"] == pytest.approx(3.0)
    assert best([[4, 5, 5]]).tokens == [2, 3, 2]  # an advance that is taken back wins nothing
