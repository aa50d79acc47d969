"""Emission delay, on utterances whose delays are worked out by hand."""

import json

import pytest
import torch
from lhotse import CutSet, MonoCut, SupervisionSegment
from lhotse.supervision import AlignmentItem

from speechattn.cli import main
from speechattn.data.tables import write_table
from speechattn.decoding.ctc import ctc_forced_align, ctc_greedy
from speechattn.errors import SpeechattnError
from speechattn.evaluation.bootstrap import BootstrapOptions
from speechattn.evaluation.delay import (
    Word,
    chunk_end,
    emission_delay,
    emitted_words,
    matches,
    score_delay,
)


def words(*spans):
    return [Word(text, start, end) for text, start, end in spans]


REFERENCES = {
    "a": words(("one", 0.1, 0.4), ("two", 0.5, 0.8), ("three", 0.9, 1.2)),
    "b": words(("four", 0.2, 0.6)),
    "c": words(("five", 0.0, 0.3)),
}
RECOGNISED = {
    # One is 100 ms late; two was not recognised; three comes 50 ms before its end.
    "a": words(("one", 0.3, 0.5), ("to", 0.6, 0.9), ("three", 1.0, 1.15)),
    # An insertion before it.
    "b": words(("oh", 0.1, 0.2), ("four", 0.5, 0.9)),
}


def test_delays_of_what_was_recognised():
    report = emission_delay(REFERENCES, RECOGNISED)
    assert report.reference_words == 5
    assert report.end.words == 3
    assert report.end.mean == pytest.approx((100 - 50 + 300) / 3, abs=0.01)
    assert report.end.p90 == pytest.approx(100 + 0.8 * 200, abs=0.01)  # between the upper two
    assert report.start.mean == pytest.approx((200 + 100 + 300) / 3, abs=0.01)
    assert (report.first.words, report.first.mean) == (2, pytest.approx(200))
    assert (report.last.words, report.last.mean) == (2, pytest.approx(125))


def test_nothing_recognised_has_no_delay():
    report = emission_delay(REFERENCES, {})
    assert (report.end.words, report.end.mean, report.end.p90) == (0, None, None)
    assert report.reference_words == 5


def test_utterances_without_reference_are_an_error():
    with pytest.raises(SpeechattnError, match="1 utterances have no reference times, such as x"):
        emission_delay(REFERENCES, {"x": []})


def test_equal_words_are_matched_by_place():
    again = words(("a", 0, 1), ("b", 1, 2), ("a", 2, 3))
    assert matches(again, words(("b", 1, 2), ("a", 2, 3))) == [(1, 0), (2, 1)]


@pytest.mark.parametrize(
    ("seconds", "chunk", "expected"), [(0.5, 0.0, 0.5), (0.5, 0.16, 0.64), (0.32, 0.16, 0.32)]
)
def test_a_chunk_has_to_be_complete(seconds, chunk, expected):
    assert chunk_end(seconds, chunk) == pytest.approx(expected)


TRANSCRIPT = {
    "id": "a",
    "text": "Bin blue",
    "tokens": [
        {"text": "▁bi", "start": 0.20, "end": 0.28},
        {"text": "n", "start": 0.36, "end": 0.40},
        {"text": "▁blue", "start": 0.64, "end": 0.80},
    ],
    "words": [
        {"text": "Bin", "start": 0.20, "end": 0.40},
        {"text": "blue", "start": 0.64, "end": 0.80},
    ],
}


def test_a_word_is_there_with_its_last_token():
    (first, second) = emitted_words(TRANSCRIPT, 0.04)
    assert first.text == "bin"
    assert (first.start, first.end) == (pytest.approx(0.24), pytest.approx(0.40))
    assert (second.start, second.end) == (pytest.approx(0.68), pytest.approx(0.68))
    (first, second) = emitted_words(TRANSCRIPT, 0.04, chunk=0.16)
    assert (first.end, second.end) == (pytest.approx(0.48), pytest.approx(0.80))


@pytest.fixture
def decoded(tmp_path):
    folder = tmp_path / "decode"
    folder.mkdir()
    (folder / "transcripts.jsonl").write_text(json.dumps(TRANSCRIPT) + "\n", encoding="utf-8")
    write_table(folder / "ref.tsv", {"a": "bin blue"})
    write_table(folder / "hyp.tsv", {"a": "bin blue"})
    spans = [AlignmentItem("bin", 0.1, 0.2), AlignmentItem("blue", 0.5, 0.2)]
    said = SupervisionSegment("a", "a", 0, 1.0, text="bin blue", alignment={"word": spans})
    cuts = CutSet.from_cuts([MonoCut("a", 0, 1.0, 0, supervisions=[said])])
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    return folder, tmp_path / "cuts.jsonl.gz"


def test_it_is_written_beside_the_error_rates(decoded, capsys):
    folder, cuts = decoded
    options = ["delay", str(folder), "--ref-times", str(cuts)]
    assert not main(["score", "--decode-dir", str(folder)]) and not main(options)
    content = json.loads((folder / "score.json").read_text())
    assert content["word"]["error_rate"] == 0
    content = content["delay"]
    # 0.40 after 0.3, and 0.68 before 0.7.
    end = content["end"]
    assert (end["words"], end["mean"], end["p90"]) == (2, pytest.approx(40), pytest.approx(88))
    assert "emission delay of 2 of 2 words" in capsys.readouterr().out
    assert not main([*options, "--chunk-seconds", "0.16"])
    content = json.loads((folder / "score.json").read_text())["delay"]
    assert content["end"]["mean"] == pytest.approx(140)


def test_what_is_missing_is_said(decoded, tmp_path, capsys):
    folder, cuts = decoded
    assert main(["delay", str(folder)]) == 2
    assert "--ref-times" in capsys.readouterr().err
    (folder / "transcripts.jsonl").unlink()
    with pytest.raises(SpeechattnError, match="transcripts.jsonl is missing"):
        score_delay(folder, cuts, 0.04)


def test_searches_that_wait_for_the_end_are_refused(decoded):
    folder, cuts = decoded
    for name in ("JointSearch", "speechattn.decoding.CtcRescoringSearch"):
        (folder / "search.yaml").write_text(f"class_path: {name}\ninit_args: {{}}\n")
        with pytest.raises(SpeechattnError, match="no emission delay; decode with CtcGreedySearch"):
            score_delay(folder, cuts, 0.04)
    (folder / "search.yaml").write_text("class_path: CtcGreedySearch\n")
    assert score_delay(folder, cuts, 0.04).end.words == 2


def test_interval_is_over_utterances():
    # All words of an utterance are as late: the interval is that of two draws out of two.
    late = {
        u: words(*((str(i), i, i + 0.1 + d) for i in range(9))) for u, d in (("a", 0), ("b", 1))
    }
    said = {u: words(*((str(i), i, i + 0.1) for i in range(9))) for u in late}
    end = emission_delay(said, late).end
    assert (end.mean, end.ci_low, end.ci_high) == (500, 0, 1000)
    assert emission_delay(said, late, BootstrapOptions(replications=0)).end.ci_low is None


def test_aligned_times_of_the_greedy_search_are_its_emissions():
    torch.manual_seed(0)
    lengths = torch.tensor([40, 23, 7, 1])
    log_probs = (3 * torch.randn(4, 40, 6)).log_softmax(-1)
    labels = log_probs[..., :-1].argmax(-1)  # never <sos/eos>
    for row, found in enumerate(ctc_greedy(log_probs, lengths)):
        path = labels[row, : lengths[row]].tolist()
        first = [t for t, x in enumerate(path) if x and (t == 0 or path[t - 1] != x)]
        spans = ctc_forced_align(log_probs[row, : lengths[row]], found.tokens)
        assert [span.start for span in spans] == first
