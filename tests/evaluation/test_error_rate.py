"""Error rates against an edit distance written here, and against counts done by hand."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from speechattn.errors import SpeechattnError
from speechattn.evaluation.bootstrap import BootstrapOptions
from speechattn.evaluation.error_rate import score

QUICK = BootstrapOptions(replications=200)


def edit_distance(a, b):
    """Levenshtein distance, the textbook table."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    table[:, 0] = np.arange(len(a) + 1)
    table[0] = np.arange(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i, j] = min(
                table[i - 1, j] + 1,
                table[i, j - 1] + 1,
                table[i - 1, j - 1] + (a[i - 1] != b[j - 1]),
            )
    return table[-1, -1]


@pytest.mark.parametrize("unit", ["char", "word"])
def test_against_an_independent_edit_distance(unit):
    rng = np.random.default_rng(0)
    words = ["a", "ab", "b", "ba", "今", "天"]
    ref, hyp = (
        {f"u{i}": " ".join(rng.choice(words, rng.integers(0, 9))) for i in range(150)}
        for _ in range(2)
    )
    report = score(ref, hyp, unit, bootstrap=QUICK)
    total = length = wrong = 0
    for one in report.utterances:
        distance = edit_distance(one.reference, one.hypothesis)
        assert one.errors == distance
        assert len(one.hypothesis) == len(one.reference) + one.insertions - one.deletions
        pairs = one.alignment()
        assert tuple(r for r, _ in pairs if r) == one.reference
        assert tuple(h for _, h in pairs if h) == one.hypothesis
        assert sum(r == "" for r, _ in pairs) == one.insertions
        assert sum(h == "" for _, h in pairs) == one.deletions
        total, length, wrong = total + distance, length + len(one.reference), wrong + (distance > 0)
    assert report.total.errors == total
    assert report.total.error_rate == pytest.approx(100 * total / length)
    assert report.total.sentence_error_rate == pytest.approx(100 * wrong / 150)
    assert report.ci_low < report.total.error_rate < report.ci_high


def test_counts_by_hand():
    report = score(
        {"a": "bin blue at f", "b": "", "c": "now"},
        {"a": "bin at f two x", "b": "oh", "c": ""},
        "word",
        bootstrap=QUICK,
    )
    total = report.total
    assert (total.insertions, total.deletions, total.substitutions) == (3, 2, 0)
    assert total.reference_length == 5
    assert total.error_rate == pytest.approx(100)
    assert total.wrong_utterances == 3


def test_chinese_is_scored_after_normalisation():
    report = score({"a": "今天 买Ａ股"}, {"a": "今 天买 a 股"}, "char", bootstrap=QUICK)
    assert (report.total.errors, report.total.reference_length) == (0, 5)


def test_space_is_a_character():
    report = score({"a": "ab cd"}, {"a": "abcd"}, "char", bootstrap=QUICK)
    assert (report.total.deletions, report.total.reference_length) == (1, 5)


def test_missing_and_extra_ids():
    ref, hyp = {"a": "one two", "b": "three"}, {"a": "one two", "x": "four"}
    with pytest.raises(SpeechattnError, match="1 of 2 references have no hypothesis: b"):
        score(ref, hyp, "word", allow_extra=True)
    with pytest.raises(SpeechattnError, match="1 of 2 hypotheses have no reference: x"):
        score(ref, hyp, "word", allow_missing=True)
    report = score(ref, hyp, "word", allow_missing=True, allow_extra=True, bootstrap=QUICK)
    assert (report.total.deletions, report.total.errors) == (1, 1)
    assert (report.missing, report.extra) == (("b",), ("x",))


def test_nothing_to_score():
    for texts in ({}, {"a": " "}):
        with pytest.raises(SpeechattnError, match="nothing to score"):
            score(texts, texts, "word")
    with pytest.raises(SpeechattnError, match="unit must be one of char, word"):
        score({"a": "b"}, {"a": "b"}, "phone")


def test_speakers_sum_to_the_total():
    rng = np.random.default_rng(1)
    ref = {f"u{i}": " ".join(rng.choice(list("abc"), 5)) for i in range(40)}
    hyp = {key: " ".join(rng.choice(list("abc"), 5)) for key in ref}
    speakers = {key: f"s{i % 12:02d}" for i, key in enumerate(ref)}
    report = score(ref, hyp, "word", speakers, bootstrap=QUICK)
    assert list(report.speakers) == sorted(set(speakers.values()))
    assert sum(s.errors for s in report.speakers.values()) == report.total.errors
    assert sum(s.utterances for s in report.speakers.values()) == 40
    assert report.ci_blocks == "speaker"  # twelve are enough
    few = {key: f"s{i % 3}" for i, key in enumerate(ref)}
    assert score(ref, hyp, "word", few, bootstrap=QUICK).ci_blocks == "utterance"
    with pytest.raises(SpeechattnError, match="1 ids have no speaker: u3"):
        score(ref, hyp, "word", {k: s for k, s in few.items() if k != "u3"})
    with pytest.raises(SpeechattnError, match="speaker column"):
        score(ref, hyp, "word", bootstrap=BootstrapOptions(blocks="speaker"))


def test_worst_and_confusions():
    report = score(
        {"a": "b p", "b": "p", "c": "b b", "d": "x"},
        {"a": "p p", "b": "p", "c": "p", "d": "y"},
        "word",
        bootstrap=QUICK,
    )
    assert [u.id for u in report.worst(5)] == ["c", "d", "a"]
    assert report.confusions(1) == [(("b", "p"), 2)]


def test_dictionary_is_strict_json():
    ref = {"a": "one two", "b": ""}
    report = score(ref, {"a": "one", "b": "x"}, "word", {"a": "s", "b": "t"}, bootstrap=QUICK)
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["unit"] == "word"
    assert found["error_rate"] == 100.0
    assert (found["errors"], found["insertions"], found["deletions"]) == (2, 1, 1)
    assert (found["substitutions"], found["reference_length"], found["utterances"]) == (0, 2, 2)
    assert found["sentence_error_rate"] == 100.0
    assert found["ci_low"] <= 100 <= found["ci_high"]
    # A speaker with empty references only has no rate.
    assert found["speakers"]["t"]["error_rate"] is None
    assert found["speakers"]["s"]["error_rate"] == 50.0


def test_render():
    report = score(
        {"a": "one [red]two", "b": "x"}, {"a": "one"}, "word", {"a": "s1", "b": "s2"},
        allow_missing=True, bootstrap=QUICK,
    )  # fmt: skip
    output = io.StringIO()
    report.render(Console(file=output, width=80), show_alignments=True)
    text = output.getvalue()
    assert "66.67" in text and "s1" in text and "over utterances" in text
    assert "1 without a hypothesis, counted as deletions: b" in text
    assert "a (s1): 1 errors / 2\nREF   one [red]two\nHYP   one ********\n" in text
