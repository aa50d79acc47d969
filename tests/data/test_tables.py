"""Tables: both forms, what is refused and where the message points."""

import pytest

from speechattn.data.tables import Table, read_table, write_table
from speechattn.errors import SpeechattnError


def table(tmp_path, content, encoding="utf-8"):
    path = tmp_path / "t.tsv"
    path.write_bytes(content.encode(encoding))
    return path


def test_two_columns(tmp_path):
    path = table(tmp_path, "\ufeffa\tone two\r\n\r\nb\t\nc\nd\tx\u2028y\n")
    assert read_table(path) == Table({"a": "one two", "b": "", "c": "", "d": "x\u2028y"})


def test_three_columns(tmp_path):
    found = read_table(table(tmp_path, "a\ts1\tone\nb\ts2\t\n"))
    assert found == Table({"a": "one", "b": ""}, {"a": "s1", "b": "s2"})


def test_empty_file_is_an_empty_table(tmp_path):
    assert read_table(table(tmp_path, "\n")) == Table({})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tone\nb\ts1\ttwo\n", r"t\.tsv:2: 3 columns, but line 1 has 2"),
        ("a\ts1\tone\nb\ttwo\n", r"t\.tsv:2: 2 columns, but line 1 has 3"),
        ("a\ts1\tone\nb\n", r"t\.tsv:2: 1 columns, but line 1 has 3"),
        ("a\tone\nb\ttwo\na\tthree\n", r"t\.tsv:3: id 'a' was already on line 1"),
        ("a\tb\tc\td\n", r"t\.tsv:1: 4 columns"),
        ("a one two\n", r"t\.tsv:1: no tab"),
        ("\tone\n", r"t\.tsv:1: the utterance id is empty"),
        ("a\t\tone\n", r"t\.tsv:1: the speaker of 'a' is empty"),
    ],
)
def test_refused(tmp_path, content, message):
    with pytest.raises(SpeechattnError, match=message):
        read_table(table(tmp_path, content))


def test_unreadable(tmp_path):
    with pytest.raises(SpeechattnError, match="no such file"):
        read_table(tmp_path / "absent.tsv")
    with pytest.raises(SpeechattnError, match="a folder"):
        read_table(tmp_path)
    with pytest.raises(SpeechattnError, match="not UTF-8"):
        read_table(table(tmp_path, "a\t今天\n", "gbk"))


@pytest.mark.parametrize("speakers", [None, {"a": "s1", "b": "s 2"}])
def test_round_trip(tmp_path, speakers):
    texts = {"a": "今天 天气", "b": ""}
    path = tmp_path / "new" / "t.tsv"
    write_table(path, texts, speakers)
    assert read_table(path) == Table(texts, speakers or {})
    assert [p.name for p in path.parent.iterdir()] == ["t.tsv"]  # nothing half-written is left


def test_write_keeps_a_line_a_line(tmp_path):
    write_table(tmp_path / "t.tsv", {"a": "one\ttwo\nthree "})
    assert read_table(tmp_path / "t.tsv").texts == {"a": "one two three"}
    for bad in ("a\tb", "a\nb", " "):
        with pytest.raises(SpeechattnError, match="cannot be an id"):
            write_table(tmp_path / "t.tsv", {bad: "x"})
    with pytest.raises(SpeechattnError, match="'b' has no speaker"):
        write_table(tmp_path / "t.tsv", {"a": "x", "b": "y"}, {"a": "s"})
