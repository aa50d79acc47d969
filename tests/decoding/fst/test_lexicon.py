"""Words and their units."""

import pytest

from speechattn.data.tokenizers import CharTokenizer
from speechattn.decoding.fst.lexicon import Lexicon, most_frequent
from speechattn.errors import ConfigError

TOKENIZER = CharTokenizer.train(["abc"])  # units 2, 3, 4


def test_words_are_spelled_and_those_without_units_left_out(caplog):
    lexicon = Lexicon.spelled(["ab", "xa", "c", "ab"], TOKENIZER)
    assert lexicon.words == ("ab", "c") and lexicon.entries == ((1, (2, 3)), (2, (4,)))
    assert "1 of 3 words" in caplog.text and "xa" in caplog.text
    with pytest.raises(ConfigError, match="no word can be spelled"):
        Lexicon.spelled(["xyz"], TOKENIZER)


def test_a_file_gives_words_several_entries(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text("ab a b\nsea c\n\nsee c\nab b\n")
    lexicon = Lexicon.read(path, TOKENIZER)
    assert lexicon.words == ("ab", "sea", "see")
    assert lexicon.entries == ((1, (2, 3)), (2, (4,)), (3, (4,)), (1, (3,)))
    for text, message in (("ab a x", "line 1: the model has no unit 'x'"), ("ab", "no units")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            Lexicon.read(path, TOKENIZER)


def test_entries_that_another_hides_get_a_symbol():
    """Homophones one each; what another begins with, one; others none."""
    lexicon = Lexicon(
        ("a", "ab", "sea", "see", "bc"), ((1, (2,)), (2, (2, 3)), (3, (4,)), (4, (4,)), (5, (3, 4)))
    )
    assert [symbol for *_, symbol in lexicon.disambiguated()] == [1, 0, 1, 2, 0]


def test_characters_with_spaces_have_a_separator():
    tokenizer = CharTokenizer.train(["a b"])
    lexicon = Lexicon.spelled(["a", "b"], tokenizer)
    assert tokenizer.tokens[lexicon.separator] == "<space>"


def test_most_frequent():
    assert most_frequent([["b", "a", "b"], ["c", "b", "a"]], 2) == ["b", "a"]
