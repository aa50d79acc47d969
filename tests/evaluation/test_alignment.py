"""Aligned errors as text."""

from rich.cells import cell_len

from speechattn.evaluation.alignment import format_alignment


def test_three_lines():
    pairs = [("bin", "bin"), ("blue", ""), ("", "at"), ("f", "x"), (" ", " ")]
    assert format_alignment(pairs) == (
        "REF   bin blue ** f ␣\nHYP   bin **** at x ␣\nEVAL      D    I  S"
    )


def test_wide_characters_line_up():
    ref, hyp, marks = format_alignment([("今", "a"), ("b", ""), ("天", "地")]).split("\n")
    assert cell_len(ref) == cell_len(hyp)
    assert marks == "EVAL  S  D S"


def test_long_lines_are_folded():
    pairs = [("word", "ward")] * 40
    text = format_alignment(pairs, width=60)
    assert max(map(cell_len, text.split("\n"))) <= 60
    assert text.count("word") == text.count("ward") == 40
    assert format_alignment([]) == "REF\nHYP\nEVAL"
