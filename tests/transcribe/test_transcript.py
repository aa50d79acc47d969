"""Transcripts as text, JSON, subtitles and tables."""

import json
import re

import pytest

from speechattn.transcribe.transcript import FORMATS, Span, Transcript, cues, format_transcripts


def speak(name: str, text: str, start: float = 0.0, step: float = 0.4, unit: str = " "):
    """A transcript whose words follow each other every `step` seconds."""
    words = text.split() if unit == " " else [c for c in text if c not in " ，。"]
    spans = [
        Span(word, start + i * step, start + i * step + min(0.3, step), 0.5 + 0.25 * (i % 2))
        for i, word in enumerate(words)
    ]
    return Transcript(name, text, spans, spans, 0.6, start + step * len(words))


ENGLISH = speak("a.mp4", "bin blue at five now")
CHINESE = speak("b.mp4", "今天 天气，很好。", unit="")
FAILED = Transcript("c.mp4", error="c.mp4: empty file (0 bytes)")


def test_txt():
    assert format_transcripts([ENGLISH], "txt") == "bin blue at five now\n"
    several = format_transcripts([ENGLISH, FAILED, CHINESE], "txt")
    assert several == "a.mp4\tbin blue at five now\nb.mp4\t今天 天气，很好。\n"
    # One of two failed: the other is still named.
    assert format_transcripts([ENGLISH, FAILED], "txt") == "a.mp4\tbin blue at five now\n"


def test_json():
    lines = format_transcripts([ENGLISH, FAILED, CHINESE], "json").splitlines()
    first, second = map(json.loads, lines)
    assert first["id"] == "a.mp4" and first["error"] is None
    assert first["words"][1] == {"text": "blue", "start": 0.4, "end": 0.7, "confidence": 0.75}
    assert second["text"] == "今天 天气，很好。"
    assert "今天" in lines[1]
    assert max(len(x) for x in re.findall(r"\d\.(\d+)", lines[0])) <= 4


def test_tsv():
    rows = [r.split("\t") for r in format_transcripts([CHINESE, FAILED], "tsv").splitlines()]
    assert rows[0] == ["file", "start", "end", "word", "confidence"]
    assert [r[3] for r in rows[1:]] == list("今天天气很好")
    assert rows[2] == ["b.mp4", "0.400", "0.700", "天", "0.750"]


def test_srt():
    assert format_transcripts([ENGLISH, FAILED], "srt") == (
        "1\n00:00:00,000 --> 00:00:01,900\nbin blue at five now\n"
    )
    both = format_transcripts([ENGLISH, CHINESE], "srt")
    assert both == (
        "1\n00:00:00,000 --> 00:00:01,900\nbin blue at five now\n\n"
        "2\n00:00:00,000 --> 00:00:02,300\n今天 天气，很好\n"
    )


def test_vtt():
    assert format_transcripts([CHINESE], "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.300\n今天 天气，很好\n"
    )
    both = format_transcripts([ENGLISH, FAILED, CHINESE], "vtt")
    assert both.split("\n\n")[0] == "WEBVTT"
    assert [b for b in both.split("\n\n") if b.startswith("NOTE")] == ["NOTE a.mp4", "NOTE b.mp4"]
    assert "c.mp4" not in both


def test_beyond_an_hour():
    late = speak("l", "one two", start=3599.7)
    assert "00:59:59,700 --> 01:00:00,400" in format_transcripts([late], "srt")
    later = speak("l", "one", start=36000 + 59 * 60 + 59.9996)
    assert "11:00:00.000 --> 11:00:00.300" in format_transcripts([later], "vtt")


def test_cues_split_at_pauses():
    words = [Span("a", 0, 0.3, 1.0), Span("b", 1.3, 1.5, 0.5), Span("c", 2.6, 3, 0.2)]
    found = cues(Transcript("x", "a b, c!", [], words))
    assert [(c.text, c.start, c.end) for c in found] == [("a b", 0, 1.5), ("c", 2.6, 3)]
    assert found[0].confidence == pytest.approx(0.75)


@pytest.mark.parametrize(("word", "step"), [("word", 0.4), ("extraordinarily", 0.1), ("a", 1.9)])
def test_cues_are_short(word, step):
    text = " ".join(f"{word}{i}" for i in range(100))
    found = cues(speak("x", text, step=step))
    assert " ".join(c.text for c in found) == text
    assert all(c.end - c.start <= 6.0 and len(c.text) <= 80 for c in found)
    assert all(a.end <= b.start for a, b in zip(found, found[1:], strict=False))
    assert len(found) < 100 or step > 1


def test_one_word_longer_than_a_cue():
    words = [Span("x" * 90, 0, 9, 1.0), Span("y", 9.2, 9.4, 1.0)]
    found = cues(Transcript("x", "x" * 90 + " y", [], words))
    assert [c.text for c in found] == ["x" * 90, "y"]


def test_cues_of_repeated_and_nested_words():
    text = "a an a can an a"
    found = cues(speak("x", text, step=1.2))
    assert " ".join(c.text for c in found) == text


def test_words_that_are_not_in_the_text():
    words = [Span("<unk>", 0, 0.3, 1.0), Span("b", 0.4, 0.5, 1.0)]
    assert cues(Transcript("x", "\u2047 b", [], words))  # no error, whatever it shows


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_was_said(kind):
    silent = Transcript("s.wav", "", duration=1.0)
    text = format_transcripts([silent], kind)
    expected = {
        "txt": "\n", "srt": "", "vtt": "WEBVTT\n", "tsv": "file\tstart\tend\tword\tconfidence\n"
    }  # fmt: skip
    if kind == "json":
        assert json.loads(text)["tokens"] == []
    else:
        assert text == expected[kind]


@pytest.mark.parametrize("kind", FORMATS)
def test_all_failed(kind):
    text = format_transcripts([FAILED], kind)
    assert "c.mp4" not in text and len(text.splitlines()) <= 1
