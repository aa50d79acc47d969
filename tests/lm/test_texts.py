"""Sentences from text and from manifests."""

import gzip

import pytest

from speechattn.data.tokenizers import CharTokenizer
from speechattn.errors import ConfigError
from speechattn.lm.texts import TokenLines, hold_out, read_texts


def test_files_of_all_kinds(tmp_path, tiny_corpus):
    (tmp_path / "a.txt").write_text("\ufeffab c\n\n  \nd\u2028e\r\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.gz", "wt") as file:
        file.write("f\ng")
    assert read_texts([tmp_path / "a.txt", tmp_path / "b.gz"]) == ["ab c", "d\u2028e\r", "f", "g"]
    found = read_texts([tiny_corpus.folder / "cuts_train.jsonl.gz"])
    assert sorted(found) != sorted(tiny_corpus.texts.values())  # two are for validation
    assert set(found) <= set(tiny_corpus.texts.values()) and len(found) == 8


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"abc" * 99)[:-9])
    for name, message in (
        ("latin.txt", "latin.txt: cannot be read as text.*utf-8"),
        ("empty.txt", "empty.txt: there is no sentence"),
        ("cut.gz", "cut.gz: cannot be read as text"),
        ("none.jsonl.gz", "none.jsonl.gz: no such manifest"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_texts([tmp_path / name])


def test_lines_of_tokens():
    tokenizer = CharTokenizer.train(["abc d"])
    texts = ["ab", "", " c  xd ", "a"]
    lines = TokenLines.of(texts, tokenizer)
    assert [line.tolist() for line in lines] == [tokenizer.encode(text) for text in texts]
    assert lines.lengths.tolist() == [2, 0, 4, 1] and len(lines) == 4
    assert lines.characters == 7 and lines.unknown == 1  # "c xd" is four


def test_holding_out():
    texts = [str(i) for i in range(120)]
    kept, held = hold_out(texts)
    assert held == ["0", "50", "100"] and sorted(kept + held) == sorted(texts)
    with pytest.raises(ConfigError, match="too few"):
        hold_out(["one"])
