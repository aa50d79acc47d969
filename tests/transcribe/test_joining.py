"""Joining of windows: against the recording that they were drawn from, and by hand."""

import random

import pytest

from speechattn.transcribe.joining import Joiner, split_units
from speechattn.transcribe.transcript import Span

FRAME = 0.04


def word(text: str, at: float, long: float = 0.12) -> Span:
    return Span(text, at, at + long, 0.9)


def write(words: list[tuple[str, float]], units: str) -> list[Span]:
    """Words at their times as a model of these units says them."""
    tokens: list[Span] = []
    for text, at in words:
        if units == "han":
            tokens.append(word(text, at))
            continue
        pieces = list(text) if units == "char" else ["\u2581" + text[:1], *text[1:]]
        if units == "char" and tokens:
            tokens.append(Span("<space>", at - 0.02, at, 0.9))
        step = 0.12 / len(pieces)
        tokens += [word(p, at + i * step, step) for i, p in enumerate(pieces)]
    return tokens


def damaged(words, start, end, rng, edge):
    """What a model says of a window: no word beyond it, words near its borders anyhow."""
    said = []
    for text, at in words:
        near = at < start + edge or at > end - edge
        if near and (chance := rng.random()) < 0.6:
            if chance < 0.2:
                continue
            if chance < 0.35:
                text = "zz"
            elif chance < 0.45:
                said.append((text, at - 0.04))
        said.append((text, at + FRAME * rng.randint(-3, 3)))
    return said


def cut(words, start, end):
    return [(text, at) for text, at in words if start <= at <= end]


def run(windows, units):
    joiner = Joiner(space=units == "char")
    for words, start, end in windows:
        joiner.add(write(words, units), start, end)
    return joiner


def texts(joiner):
    return [unit.text for unit in joiner.units]


@pytest.mark.parametrize("units", ["piece", "char", "han"])
@pytest.mark.parametrize("vocabulary", [2, 5, 30])
def test_random_recordings(units, vocabulary):
    """Nothing doubled, lost or changed, whatever happens at the borders and to the times.

    With two different words there are many that repeat the one before, and there are pauses.
    """
    letters = "abcdefghijklmnopqrstuvwxyzäöüß"
    choice = [chr(0x4E00 + i) if units == "han" else 2 * c for i, c in enumerate(letters)]
    rng = random.Random(vocabulary)
    for trial in range(60):
        # Apart by more than the times are off: nobody can tell words that come closer.
        at, words = 0.3, []
        while at < 60:
            words.append((rng.choice(choice[:vocabulary]), at))
            at += rng.uniform(0.3, 0.6) + (rng.random() < 0.1) * rng.uniform(0.5, 6)
        windows = []
        for start in range(0, 49, 8):
            borders = start if start else -9, start + 12 if start < 48 else 99
            inside = cut(words, start, start + 12)
            windows.append((damaged(inside, *borders, rng, 0.8), start, start + 12))
        assert texts(run(windows, units)) == [text for text, _ in words], trial


@pytest.mark.parametrize("shift", range(-6, 7))
@pytest.mark.parametrize("at", [9.0, 9.9, 9.96, 10.0, 10.04, 10.1, 11.0])
def test_one_word_near_the_middle(at, shift):
    """A time alone would take it twice or not at all."""
    first, second = [("so", 3.0), ("it", at)], [("it", at + shift * FRAME), ("is", 17.0)]
    assert texts(run([(first, 0, 12), (second, 8, 20)], "piece")) == ["so", "it", "is"]


@pytest.mark.parametrize("apart", [-0.1, 0.1])
def test_a_misheard_word_is_one_word(apart):
    """One window has it before, the other after the middle of the overlap, and differently."""
    first = [("so", 3.0), ("at", 10 + apart / 2)]
    second = [("it", 10 - apart / 2), ("is", 17.0)]
    found = texts(run([(first, 0, 12), (second, 8, 20)], "piece"))
    assert len(found) == 3 and found[1] in ("at", "it")


def test_equal_words_that_borders_cut():
    """Each window has heard two of three; the third word is no repetition of the second."""
    first, second = [("no", 8.1), ("no", 10.0)], [("no", 10.04), ("no", 11.9)]
    assert texts(run([(first, 0, 12), (second, 8, 20)], "piece")) == ["no"] * 3


def test_the_windows_agree_far_from_the_middle_only():
    """The first lost its way early in the overlap."""
    first = [("a", 8.4), ("b", 8.8), ("x", 9.9), ("y", 10.6), ("z", 11.0)]
    second = [("a", 8.4), ("b", 8.8), ("c", 9.3), ("d", 9.6), ("e", 10.2), ("f", 11.2)]
    assert texts(run([(first, 0, 12), (second, 8, 20)], "piece")) == list("abcdef")


def test_no_agreement_at_all():
    """By time: the first window before the middle, the second after it."""
    first, second = [("a", 8.2), ("b", 11.8)], [("c", 9.3), ("d", 10.8)]
    found = texts(run([(first, 0, 12), (second, 8, 20)], "piece"))
    assert found == ["a", "d"]


@pytest.mark.parametrize("misses", ["first", "second"])
@pytest.mark.parametrize("at", [9.7, 10.3])
def test_a_word_that_one_window_missed(at, misses):
    """It is far from the border of the window that heard it; both agree around it."""
    words = [("a", 8.5), ("b", 9.2), ("c", at), ("d", 10.9), ("e", 11.5)]
    without = [w for w in words if w[0] != "c"]
    first, second = (without, words) if misses == "first" else (words, without)
    assert texts(run([(first, 0, 12), (second, 8, 20)], "piece")) == list("abcde")


def test_windows_without_overlap_follow_each_other():
    first, second = [("no", 3.0), ("no", 7.95)], [("no", 8.05), ("no", 9.0)]
    assert texts(run([(first, 0, 8), (second, 8, 16)], "piece")) == ["no"] * 4


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_window_of_silence(gone):
    windows = [([("a", 1.0)], 0, 12), ([("b", 15.0)], 8, 20), ([("c", 25.0)], 16, 28)]
    windows[gone] = ([], *windows[gone][1:])
    assert texts(run(windows, "char")) == [w for i, w in enumerate("abc") if i != gone]


def test_spaces_between_characters():
    """A window's first word has no space before it; the text needs one all the same."""
    windows = [([("it", 7.0)], 0, 8), ([("is", 9.0), ("so", 10.0)], 8, 16)]
    tokens = run(windows, "char").tokens()
    assert "".join(t.text for t in tokens) == "it<space>is<space>so"
    assert all(a.end <= b.start for a, b in zip(tokens, tokens[1:], strict=False))
    windows = [([("是", 7.0)], 0, 8), ([("不", 9.0)], 8, 16)]
    joiner = Joiner(space=True)
    for words, *borders in windows:
        joiner.add(write(words, "han"), *borders)
    assert [t.text for t in joiner.tokens()] == ["是", "不"]


def test_times_never_run_backwards():
    first = [("a", 8.9), ("b", 9.9), ("x", 10.3)]
    second = [("a", 8.7), ("b", 9.7), ("c", 9.9)]
    tokens = run([(first, 0, 12), (second, 8, 20)], "piece").tokens()
    assert all(a.start <= a.end <= b.start for a, b in zip(tokens, tokens[1:], strict=False))


def test_a_token_of_several_words_is_not_split():
    tokens = [word("\u2581of\u2581the", 1.0), word("re", 1.2), word("\u2581it", 1.5)]
    assert [(u.text, len(u.tokens)) for u in split_units(tokens)] == [("of there", 2), ("it", 1)]


def test_long_overlap_reaches_back_over_two_windows():
    """The last window of a file starts early, so that it is as long as the others."""
    words = [(c, 0.5 + i) for i, c in enumerate("abcdefghijklmnop")]
    windows = [(cut(words, s, s + 8), s, s + 8) for s in (0, 4, 6)]
    assert texts(run(windows, "piece")) == [c for c, at in words if at <= 14]
