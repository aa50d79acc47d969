"""eSpeak NG: phones and words in time, reproducible, whatever was said before."""

import time

import numpy as np
import pytest

pytest.importorskip("espeakng_loader", reason="needs espeakng-loader")

from speechattn.errors import ConfigError
from speechattn.synth.sentences import GRAMMARS, draw_sentences, make_sentence
from speechattn.synth.speech import Synthesiser, Voice, normalise_phone

# f2 has breath noise and an echo, which eSpeak draws by chance and carries over.
VOICES = [Voice("en", "m3", rate=150), Voice("en", "f2", rate=150), Voice("cmn", "f2", rate=210)]


def _say(voice, seed=0):
    (sentence,) = draw_sentences(voice.language, 1, np.random.default_rng(seed))
    return sentence, Synthesiser().speak(sentence.words, voice, sentence.spoken)


@pytest.mark.parametrize("voice", VOICES, ids=lambda v: f"{v.language}+{v.variant}")
def test_phones_and_words_are_in_order_and_inside_the_audio(voice):
    for seed in range(8):
        sentence, speech = _say(voice, seed)
        total = len(speech.samples) / speech.sample_rate
        assert 0.8 < total < 3.5
        times = [t for p in speech.phones for t in (p.start, p.end)]
        assert times == sorted(times)
        assert times[0] >= 0 and times[-1] <= total
        assert all(a.end == b.start for a, b in zip(speech.phones, speech.phones[1:], strict=False))
        assert tuple(w.text for w in speech.words) == sentence.words
        assert all(w.end - w.start > 0.03 for w in speech.words)
        assert all(a.end <= b.start for a, b in zip(speech.words, speech.words[1:], strict=False))
        assert speech.words[-1].end <= total
        for word in speech.words:  # no word without a sounding phone
            assert any(p.symbol and word.start - 1e-6 <= p.start < word.end for p in speech.phones)


def test_phone_times_fit_the_sound():
    """Fricatives carry far more high-frequency energy than the vowels between them."""
    speech = Synthesiser().speak(["see", "say", "saw"], Voice("en", "m3", rate=120))

    def brightness(symbols):
        values = []
        for p in speech.phones:
            if p.symbol in symbols:
                a, b = (int(t * speech.sample_rate) for t in (p.start, p.end))
                power = np.abs(np.fft.rfft(speech.samples[a:b])) ** 2
                values.append(power[len(power) // 3 :].sum() / power.sum())
        assert values
        return values

    assert min(brightness({"s"})) > 3 * max(brightness({"i", "eɪ", "ɔ"}))


@pytest.mark.parametrize("voice", VOICES, ids=lambda v: f"{v.language}+{v.variant}")
def test_the_same_sound_whatever_was_said_before(voice):
    first = _say(voice)[1]
    _say(Voice("en", "f2"), 5)
    time.sleep(1.05)  # eSpeak seeds its noise from the clock, in seconds
    again = _say(voice)[1]
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.phones == again.phones


def test_voices_differ():
    a, b = (_say(v)[1].samples for v in VOICES[:2])
    assert len(a) != len(b) or np.abs(a - b).max() > 0.05


@pytest.mark.parametrize("language", ["en", "cmn"])
def test_every_word_of_the_grammar_is_said_apart(language):
    sizes = [len(slot) for slot, _ in GRAMMARS[language]]
    for i in range(max(sizes)):
        sentence = make_sentence(language, [i % size for size in sizes])
        speech = Synthesiser().speak(sentence.words, Voice(language), sentence.spoken)
        assert len(speech.words) == 6


@pytest.mark.parametrize(
    ("written", "meant"),
    [("ˈuː", "u"), ("tʃ", "tʃ"), ("ts.", "tʂ"), ("ts.h", "tʂ"), ("ph", "p"), ("tɕh", "tɕ"),
     ("ˈo-", "ɤ"), ("i̪", "ɨ"), ("ˈi.", "ɨ"), ("h", "h"), ("onɡ", "oŋ"), ("", ""), ("ɫ", "ɫ")],
)  # fmt: skip
def test_normalise_phone(written, meant):
    assert normalise_phone(written) == meant


@pytest.mark.parametrize("voice", [Voice("xx"), Voice("en", "nobody")])
def test_unknown_voice_is_named(voice):
    with pytest.raises(ConfigError, match="xx|nobody"):
        Synthesiser().speak(["a"], voice)
