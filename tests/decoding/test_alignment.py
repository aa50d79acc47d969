"""Times of tokens and words, by hand."""

import pytest
import torch

from speechattn.decoding import AlignmentError, TokenTime, WordTime, token_times, word_times


def spell(*pieces: str) -> tuple[list[TokenTime], list[str]]:
    """One second and one tenth of confidence more for each piece."""
    table = ["<blank>", "<unk>", *dict.fromkeys(p for p in pieces if p != "<unk>")]
    times = [
        TokenTime(table.index(p), float(i), i + 1.0, (i + 1) / 10) for i, p in enumerate(pieces)
    ]
    return times, table


def words(*pieces: str) -> list[str]:
    return [w.word for w in word_times(*spell(*pieces))]


def test_token_times_in_seconds():
    path = torch.tensor([0, 2, 2, 0, 0, 3])
    probability = torch.full((6, 4), 0.1)
    probability[torch.arange(6), path] = 0.7
    probability[2, 2], probability[2, 0] = 0.5, 0.3
    times = token_times(probability.log(), [2, 3], 0.04)
    assert [(t.token, t.start, t.end) for t in times] == [
        (2, pytest.approx(0.04), pytest.approx(0.12)),
        (3, pytest.approx(0.20), pytest.approx(0.24)),
    ]
    assert [t.confidence for t in times] == pytest.approx([0.6, 0.7])
    assert token_times(probability.log(), [], 0.04) == []
    with pytest.raises(AlignmentError):
        token_times(probability.log(), [2] * 4, 0.04)


def test_characters_with_a_space_token():
    times, table = spell("h", "i", "<space>", "y", "o", "u")
    assert word_times(times, table) == [
        WordTime("hi", 0.0, 2.0, pytest.approx(0.15)),
        WordTime("you", 3.0, 6.0, pytest.approx(0.5)),
    ]
    assert words("<space>", "a", "<space>", "<space>", "b", "<space>") == ["a", "b"]
    assert words("<space>") == []
    assert word_times([], table) == []


def test_sentencepieces():
    times, table = spell("\u2581set", "\u2581whi", "te", "\u2581", "now", "\u2581a\u2581b")
    found = word_times(times, table)
    assert [w.word for w in found] == ["set", "white", "now", "a", "b"]
    assert (found[1].start, found[1].end) == (1.0, 3.0)
    assert found[1].confidence == pytest.approx(0.25)
    # Two characters share the last piece's second; marks take no time.
    assert (found[4].start, found[4].end) == (5.5, 6.0)
    assert found[3].confidence == found[4].confidence == pytest.approx(0.6)


def test_chinese_and_mixed():
    assert words("今", "天", "好") == ["今", "天", "好"]
    assert words("我", "用", "p", "y", "3", "写", "。") == ["我", "用", "py3", "写。"]
    assert words("\u2581今天", "ok") == ["今", "天", "ok"]
    found = word_times(*spell("\u2581今天"))
    assert found[0].start < found[0].end <= found[1].start < found[1].end
    assert words("が", "ab", "<space>", "cd", ",", "不") == ["が", "ab", "cd,", "不"]


def test_unknown_is_one_symbol():
    assert words("a", "<unk>", "<space>", "<unk>") == ["a<unk>", "<unk>"]


def test_the_mark_of_a_word_takes_no_time():
    """A piece that is a whole word begins and ends where its token does."""
    times, pieces = spell("\u2581bin", "\u2581blue")
    for word, time in zip(word_times(times, pieces), times, strict=True):
        assert (word.start, word.end) == (time.start, pytest.approx(time.end))
