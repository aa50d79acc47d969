"""The closed grammars."""

from collections import Counter

import numpy as np
import pytest

from speechattn.errors import ConfigError
from speechattn.synth.sentences import GRAMMARS, draw_sentences, make_sentence


def test_grid_names_and_words():
    sentence = make_sentence("en", (2, 0, 0, 5, 9, 1))
    assert sentence.name == "pbaf9n"
    assert " ".join(sentence.words) == "place blue at f nine now"


@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_grammar_is_well_formed(language):
    assert [len(slot) for slot, _ in GRAMMARS[language]].count(4) == 4
    for slot, code in GRAMMARS[language]:
        assert len(slot) == len(set(slot)) == len(code) == len(set(code))
    assert np.prod([len(slot) for slot, _ in GRAMMARS[language]]) == 64000


@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_sentences_are_different_balanced_and_reproducible(language):
    drawn = draw_sentences(language, 200, np.random.default_rng(0))
    assert drawn == draw_sentences(language, 200, np.random.default_rng(0))
    assert drawn != draw_sentences(language, 200, np.random.default_rng(1))
    assert len({s.name for s in drawn}) == len({s.words for s in drawn}) == 200
    for i, (slot, _) in enumerate(GRAMMARS[language]):
        counts = Counter(s.words[i] for s in drawn)
        assert set(counts) == set(slot)
        assert max(counts.values()) - min(counts.values()) <= 4


def test_bad_requests_are_named():
    with pytest.raises(ConfigError, match="language 'fr'"):
        draw_sentences("fr", 1, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="utterances"):
        draw_sentences("en", 0, np.random.default_rng(0))
