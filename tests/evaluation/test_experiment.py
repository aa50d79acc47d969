"""Experiment folders, whole and in pieces."""

import json

import numpy as np
import pytest

from speechattn.data.tokenizers import CharTokenizer
from speechattn.errors import SpeechattnError
from speechattn.evaluation.experiment import (
    read_details,
    read_experiments,
    read_metrics,
    read_scores,
    read_vocabulary,
)


def test_whole(experiments):
    av, audio, chinese = read_experiments(experiments)
    assert [e.name for e in (av, audio, chinese)] == list(experiments)
    assert (av.modality, audio.modality) == ("audio+video", "audio")
    assert chinese.synthetic and not av.synthetic
    (decode,) = av.decodes
    assert decode.split == "test" and set(decode.scores) == {"char", "word"}
    assert len(decode.details) == 2
    assert decode.report("word").total.error_rate == decode.scores["word"]["error_rate"]
    details = read_details(decode.details[0])
    assert details.ctc.shape == (75, 30) and details.duration == pytest.approx(3.0)
    assert "".join(details.tokens).replace("<space>", " ") == details.text


def test_empty_folder_and_none(tmp_path):
    (found,) = read_experiments([tmp_path])
    assert found.name == tmp_path.name
    assert (found.meta, found.metrics, found.decodes, found.modality) == ({}, {}, (), "")
    with pytest.raises(SpeechattnError, match="no such experiment folder"):
        read_experiments([tmp_path / "absent"])


def test_scores_flat_nested_and_damaged(tmp_path):
    path = tmp_path / "score.json"
    path.write_text(json.dumps({"unit": "word", "error_rate": 3.0}))
    assert read_scores(tmp_path) == {"word": {"unit": "word", "error_rate": 3.0}}
    path.write_text(json.dumps({"char": {"error_rate": 1.0}, "word": None}))
    assert read_scores(tmp_path) == {"char": {"error_rate": 1.0}}
    path.write_text("{")
    assert read_scores(tmp_path) == {}


def test_metrics_with_blanks(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,valid_loss\n0,\n0,2.5\n1,inf\n1,oops\n1\n")
    found = read_metrics(path)
    np.testing.assert_array_equal(found["epoch"], [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(found["valid_loss"], [np.nan, 2.5, np.inf, np.nan, np.nan])
    path.write_text("")
    assert read_metrics(path) == read_metrics(tmp_path / "absent.csv") == {}


def test_details_damaged_or_bare(tmp_path, caplog):
    path = tmp_path / "u.npz"
    path.write_bytes(b"PK\x03\x04 cut short")
    assert read_details(path) is None and "u.npz" in caplog.text
    np.savez(path, tokens=np.array([object()], dtype=object))  # a pickle: refused, not run
    assert read_details(path) is None
    np.savez(path, text="hi", ctc=np.ones((4, 3)) / 3)
    found = read_details(path, ("<blank>", "<unk>", "a", "<sos/eos>"))
    assert found.vocabulary is None  # four names for three units
    assert (found.tokens, found.crops, found.cross_attention) == ((), None, None)


def test_vocabulary_of_a_model_directory(tmp_path):
    assert read_vocabulary(tmp_path / "absent") is None
    assert read_vocabulary(tmp_path) is None
    tokenizer = CharTokenizer.train(["ab"])
    tokenizer.save(tmp_path)
    assert read_vocabulary(tmp_path) == tuple(tokenizer.tokens)
