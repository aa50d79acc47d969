"""The Mandarin grammar: its words look different on the lips, and eSpeak says what is meant."""

from collections import Counter
from functools import cache
from itertools import combinations

import numpy as np
import pytest

pytest.importorskip("espeakng_loader", reason="needs espeakng-loader")

from speechattn.errors import ConfigError
from speechattn.synth.mandarin import (
    CHARACTERS,
    SLOTS,
    count_mandarin,
    draw_mandarin,
    make_mandarin,
)
from speechattn.synth.speech import Synthesiser, Voice
from speechattn.synth.visemes import PARAMETERS, mouth_track

# What phones look like, a letter each, by hand: B lips closed, F lip under teeth, s teeth together,
# c the same but pushed out, t tongue up, . behind the lips; a wide open, e half open, i spread,
# o round, u pursed.
_LOOKS = {
    **dict.fromkeys("p b m".split(), "B"),
    "f": "F",
    **dict.fromkeys("ts s tɕ ɕ".split(), "s"),
    **dict.fromkeys("tʂ ʂ ʐ".split(), "c"),
    **dict.fromkeys("t n l".split(), "t"),
    **dict.fromkeys("k ŋ χ".split(), "."),
    "w": "u", "j": "i", "a": "a", "ɑ": "a", "ɛ": "e", "e": "e", "ə": "e", "ɤ": "e",
    "i": "i", "ɨ": "i", "y": "u", "u": "u", "o": "o",
}  # fmt: skip
# The same from pinyin: longest initial first, then the final.
_INITIALS = {
    "zh": "c", "ch": "c", "sh": "c", "b": "B", "p": "B", "m": "B", "f": "F", "d": "t", "t": "t",
    "n": "t", "l": "t", "g": ".", "k": ".", "h": ".", "j": "s", "q": "s", "x": "s", "z": "s",
    "c": "s", "s": "s", "w": "u", "y": "i", "r": "c",
}  # fmt: skip
_FINALS = {
    "a": "a", "o": "o", "e": "e", "i": "i", "u": "u", "ai": "ai", "ei": "ei", "ao": "au",
    "ou": "ou", "an": "at", "ang": "a.", "eng": "e.", "ing": "i.", "ian": "iet", "iao": "iau",
    "iang": "ia.", "iu": "iou", "ua": "ua", "uo": "uo", "v": "u", "van": "uet",
}  # fmt: skip


def looks_of(pinyin):
    out = ""
    for syllable in pinyin.split():
        initial = next((i for i in _INITIALS if syllable.startswith(i)), "")
        final = syllable[len(initial) :]
        if initial in ("j", "q", "x", "y") and final.startswith("u"):
            final = "v" + final[1:]  # pinyin leaves the dots away
        out += _INITIALS.get(initial, "") + _FINALS[final]
    return squeezed(out)


def squeezed(looks):
    """Without repeats: "yi" is one shape, not a glide and then a vowel."""
    return "".join(c for c, before in zip(looks, " " + looks, strict=False) if c != before)


@cache
def said(text, words=()):
    return Synthesiser().speak(list(words or (text,)), Voice("cmn", "m3", rate=160))


def letters(symbol):
    i = 0
    while i < len(symbol):
        size = 2 if symbol[i : i + 2] in _LOOKS else 1
        yield symbol[i : i + size]
        i += size


def looks_said(phones):
    return squeezed("".join(_LOOKS[x] for p in phones for x in letters(p.symbol)))


def all_words():
    return [(word, pinyin) for _, words in SLOTS for word, pinyin in words.items()]


@pytest.mark.parametrize("word, pinyin", all_words())
def test_espeak_says_the_pinyin(word, pinyin):
    assert looks_said(said(word).phones) == looks_of(pinyin)


@pytest.mark.parametrize("seed", range(4))
def test_words_are_said_in_sentences_as_alone_and_phones_lie_in_their_words(seed):
    for sentence in draw_mandarin(6, np.random.default_rng(seed)):
        pinyin = {word: p for word, p in all_words()}
        speech = said("", sentence.words)
        assert [w.text for w in speech.words] == list(sentence.words)
        for word in speech.words:
            inside = [p for p in speech.phones if word.start <= (p.start + p.end) / 2 < word.end]
            assert looks_said(inside) == looks_of(pinyin[word.text]), (sentence.words, word)
            assert 0.25 < word.end - word.start < 0.9


def test_phones_are_where_the_sound_is():
    """Hissing (ʂ, tʂ, s) is high, vowels are low: zero crossings tell where eSpeak has which."""
    high, low = [], []
    for word in ("叔叔", "老师", "雨伞", "晚上"):
        speech = said(word)
        for phone in speech.phones:
            start, end = (round(t * speech.sample_rate) for t in (phone.start, phone.end))
            part = speech.samples[start:end]
            if phone.symbol in ("ʂ", "s", "u", "ɑ", "a"):
                rate = np.mean(np.diff(np.signbit(part)))
                (high if phone.symbol in ("ʂ", "s") else low).append(rate)
    assert len(high) >= 5 and len(low) >= 4
    assert np.median(high) > 3 * np.median(low)


def _edits(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def test_viseme_sequences_of_the_words_of_a_slot_are_two_changes_apart_or_more():
    for _, words in SLOTS:
        for a, b in combinations(words, 2):
            assert _edits(looks_said(said(a).phones), looks_said(said(b).phones)) >= 2, (a, b)


def _drawn(word):
    phones = said(word).phones
    end = max(p.end for p in phones if p.symbol)
    return mouth_track(phones, np.arange(phones[0].start - 0.04, end + 0.04, 0.02))


def _distance(a, b):
    """Mean distance of the mouths drawn, along the best alignment of one word to the other."""
    weights = [
        {"jaw": 0.5, "tongue": 0.3, "lower_teeth": 0.4, "teeth": 0.5, "tip": 0.3}.get(n, 1.0)
        for n in PARAMETERS
    ]
    cost = np.sqrt(((a[:, None] - b[None]) ** 2 * weights).sum(-1))
    best = np.full((len(a) + 1, len(b) + 1), np.inf)
    best[0, 0] = 0
    for i in range(len(a)):
        for j in range(len(b)):
            around = min(best[i, j], best[i, j + 1], best[i + 1, j])
            best[i + 1, j + 1] = cost[i, j] + around
    return best[-1, -1] / max(len(a), len(b))


def test_no_two_words_of_a_slot_are_drawn_alike():
    tracks = {word: _drawn(word) for word, _ in all_words()}
    for _, words in SLOTS:
        for a, b in combinations(words, 2):
            assert _distance(tracks[a], tracks[b]) > 0.5, (a, b)
    # The measure sees what is alike: b and m are the same lips.
    assert _distance(_drawn("买到"), _drawn("卖到")) < 0.1


def test_sentences():
    assert "".join(make_mandarin((2, 2, 1, 2, 0)).words) == "去年叔叔打破两只苹果"
    assert make_mandarin((None, 0, 0, None, 1)).words == ("爸爸", "保护", "飞机")
    assert 40 <= len(CHARACTERS) <= 60 and list(CHARACTERS) == sorted(set(CHARACTERS))
    drawn = draw_mandarin(400, np.random.default_rng(0))
    assert drawn == draw_mandarin(400, np.random.default_rng(0))
    assert len({s.words for s in drawn}) == len({s.name for s in drawn}) == 400
    assert set(Counter(len(s.words) for s in drawn)) == {3, 4, 5}
    for optional, words in SLOTS:
        counts = Counter(w for s in drawn for w in s.words if w in words)
        assert set(counts) == set(words)
        expected = 400 / len(words) / (2 if optional else 1)
        assert all(0.6 * expected < c < 1.4 * expected for c in counts.values())
    with pytest.raises(ConfigError, match="sentences"):
        draw_mandarin(count_mandarin(), np.random.default_rng(0))
