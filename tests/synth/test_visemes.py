"""The mouth follows the phones: lips close for p b m, round for u, open for a."""

import logging

import numpy as np
import pytest

from speechattn.synth import visemes
from speechattn.synth.speech import Phone
from speechattn.synth.visemes import PARAMETERS, mouth_track, visemes_of

COLUMN = {name: i for i, name in enumerate(PARAMETERS)}


def phones(*items, start=0.3):
    """(symbol, seconds) pairs in a row."""
    out = []
    for symbol, seconds in items:
        out.append(Phone(symbol, start, start + seconds))
        start += seconds
    return out


def at(track, times, when):
    return track[int(np.argmin(np.abs(times - when)))]


@pytest.mark.parametrize("offset", np.linspace(0, 0.04, 5))
@pytest.mark.parametrize("bilabial", ["p", "b", "m"])
@pytest.mark.parametrize("vowel", ["ɑ", "i", "aɪ", "o"])
def test_a_bilabial_is_closed_in_some_frame_wherever_the_frames_fall(bilabial, vowel, offset):
    said = phones((vowel, 0.15), (bilabial, 0.02), (vowel, 0.15))
    times = np.arange(0, 1, 0.04) + offset
    track = mouth_track(said, times)
    near = (times > said[1].start - 0.08) & (times < said[1].end + 0.03)
    assert track[near, COLUMN["opening"]].min() == 0.0
    assert track[near, COLUMN["press"]].max() > 0.6
    vowels = (times > said[0].start) & (times < said[2].end)
    assert track[vowels, COLUMN["opening"]].max() > 0.15  # and opens for the vowels


def test_homophenes_are_identical_and_others_are_not():
    times = np.arange(0, 1, 0.04)

    def track(consonant):
        return mouth_track(phones(("a", 0.1), (consonant, 0.08), ("i", 0.1)), times)

    for same in ("pbm", "fv", "tdn", "kgŋ", "sz"):
        for other in same[1:]:
            np.testing.assert_array_equal(track(same[0]), track(other))
    kinds = ["p", "f", "t", "k", "s", "θ", "l", "w", "ʃ"]
    for i, a in enumerate(kinds):
        for b in kinds[i + 1 :]:
            assert np.abs(track(a) - track(b)).max() > 0.1, (a, b)


def test_shapes_of_sounds():
    times = np.arange(0, 1, 0.01)

    def middle(symbol):
        return dict(
            zip(PARAMETERS, at(mouth_track(phones((symbol, 0.2)), times), times, 0.4), strict=True)
        )

    assert middle("u")["rounding"] > 0.8 and middle("u")["width"] < -0.5
    assert middle("i")["width"] > 0.7 and middle("i")["rounding"] < 0.1
    assert middle("ɑ")["opening"] > 0.8 and middle("ɑ")["jaw"] > 0.8
    assert middle("f")["tuck"] > 0.9 and middle("f")["teeth"] > 0.9
    assert middle("θ")["tip"] > 0.9
    assert middle("s")["lower_teeth"] > 0.9 and middle("s")["opening"] < 0.25


def test_a_coming_vowel_rounds_the_consonant_before_it():
    times = np.arange(0, 1, 0.01)
    rounded = at(mouth_track(phones(("s", 0.1), ("u", 0.2)), times), times, 0.37)
    spread = at(mouth_track(phones(("s", 0.1), ("i", 0.2)), times), times, 0.37)
    assert rounded[COLUMN["rounding"]] > spread[COLUMN["rounding"]] + 0.2


def test_smooth_in_range_and_at_rest_at_the_ends():
    said = phones(*[(s, 0.09) for s in ("b", "ɪ", "n", "", "tʃ", "uo", "w", "aɪ", "t", "f", "θ")])
    times = np.arange(0, 2.5, 0.005)
    track = mouth_track(said, times)
    assert track.shape == (len(times), len(PARAMETERS)) and np.isfinite(track).all()
    assert np.abs(np.diff(track, axis=0)).max() < 0.35  # a whole range in 15 ms at the fastest
    assert track.max() <= 1 and track.min() >= -1
    assert np.delete(track, COLUMN["width"], axis=1).min() >= 0
    assert track[0, COLUMN["opening"]] == track[-1, COLUMN["opening"]] == 0
    silence = mouth_track([Phone("", 0, 1)], times)
    assert silence.shape == track.shape and silence[:, COLUMN["opening"]].max() == 0


def test_diphthongs_move():
    assert len(visemes_of("aɪ")) == 2 and len(visemes_of("iou")) == 3
    assert len(visemes_of("tʃ")) == 1 and len(visemes_of("tɕ")) == 1
    assert visemes_of("") == [visemes.REST]


def test_unknown_phone_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(visemes, "_warned", set())
    with caplog.at_level(logging.WARNING):
        visemes_of("ʘ")
        visemes_of("aʘ")
    assert len(caplog.records) == 1 and "ʘ" in caplog.text


@pytest.mark.parametrize("language", ["en", "cmn"])
def test_the_corpus_has_no_unknown_phone(language, caplog, monkeypatch):
    pytest.importorskip("espeakng_loader", reason="needs espeakng-loader")
    from speechattn.synth.sentences import draw_sentences
    from speechattn.synth.speech import Synthesiser, Voice

    monkeypatch.setattr(visemes, "_warned", set())
    voice, found = Voice(language), set()
    with caplog.at_level(logging.WARNING):
        for sentence in draw_sentences(language, 60, np.random.default_rng(1)):
            speech = Synthesiser().speak(sentence.words, voice, sentence.spoken)
            found |= {p.symbol for p in speech.phones}
            mouth_track(speech.phones, np.arange(0, 2, 0.04))
    assert not caplog.records
    assert len(found) > 25
