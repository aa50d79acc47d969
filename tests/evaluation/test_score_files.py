"""Scoring from files: what `speechattn score` and stage 6 call."""

import io
import json

import pytest
from rich.console import Console

from speechattn.data.tables import write_table
from speechattn.errors import SpeechattnError
from speechattn.evaluation import BootstrapOptions, score_both, score_files

QUICK = BootstrapOptions(replications=100)


def test_json_and_console(tmp_path):
    write_table(tmp_path / "ref.tsv", {"a": "one two", "b": "three"}, {"a": "s1", "b": "s2"})
    write_table(tmp_path / "hyp.tsv", {"b": "three", "a": "one too"})
    output = io.StringIO()
    report = score_files(
        tmp_path / "ref.tsv",
        tmp_path / "hyp.tsv",
        "word",
        json_path=tmp_path / "out" / "score.json",
        console=Console(file=output, width=80),
        bootstrap=QUICK,
    )
    written = json.loads((tmp_path / "out" / "score.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.to_dict()))
    assert written["error_rate"] == pytest.approx(100 / 3)
    assert set(written["speakers"]) == {"s1", "s2"}
    assert "33.33" in output.getvalue() and "REF" not in output.getvalue()


def test_speakers_of_the_hypotheses(tmp_path):
    write_table(tmp_path / "ref.tsv", {"a": "one", "b": "two"})
    write_table(tmp_path / "hyp.tsv", {"a": "one"}, {"a": "s1"})
    files = tmp_path / "ref.tsv", tmp_path / "hyp.tsv"
    report = score_files(*files, "word", allow_missing=True, bootstrap=QUICK)
    assert set(report.speakers) == {"s1", "unknown"}


def test_speakers_must_agree(tmp_path):
    write_table(tmp_path / "ref.tsv", {"a": "one"}, {"a": "s1"})
    write_table(tmp_path / "hyp.tsv", {"a": "one"}, {"a": "s2"})
    with pytest.raises(SpeechattnError, match=r"hyp\.tsv: the speaker of 'a' is 's2', but 's1'"):
        score_files(tmp_path / "ref.tsv", tmp_path / "hyp.tsv")


def test_errors_name_the_files(tmp_path):
    write_table(tmp_path / "ref.tsv", {"a": "one"})
    write_table(tmp_path / "hyp.tsv", {})
    with pytest.raises(SpeechattnError, match=r"hyp\.tsv against .*ref\.tsv: 1 of 1 references"):
        score_files(tmp_path / "ref.tsv", tmp_path / "hyp.tsv")


def test_both_units(tmp_path):
    write_table(tmp_path / "ref.tsv", {"a": "one two"})
    write_table(tmp_path / "hyp.tsv", {"a": "one tow"})
    reports = score_both(tmp_path, bootstrap=QUICK)
    written = json.loads((tmp_path / "score.json").read_text())
    assert set(reports) == set(written) == {"char", "word"}
    assert written["word"]["error_rate"] == 50
    assert written["char"]["error_rate"] == pytest.approx(200 / 7)
    assert written["char"]["ci_low"] is not None
