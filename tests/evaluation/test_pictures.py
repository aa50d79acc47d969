"""Pictures of an utterance: what is on them, in what order and when."""

import re
from dataclasses import replace

import numpy as np
import pytest

from speechattn.evaluation.experiment import Details, read_details, read_experiments
from speechattn.evaluation.pictures import (
    _shrink,
    ctc_rows,
    heads_picture,
    shown_token,
    utterance_picture,
    words_in_time,
)

VOCABULARY = ("<blank>", "<unk>", "<space>", "a", "b", "$x_", "好", "<sos/eos>")


def details(path: str, tokens: tuple[str, ...]) -> Details:
    """An utterance whose posteriors follow `path`, one character a frame of 0.1 s."""
    ids = {".": 0, "_": 2, "a": 3, "b": 4, "$": 5, "好": 6}
    ctc = np.full((len(path), len(VOCABULARY)), 0.01, dtype=np.float32)
    for frame, char in enumerate(path):
        ctc[frame, ids[char]] = 0.93
    return Details("u", "", "", tokens, 0.1, ctc, None, None, VOCABULARY)


def test_words_stand_where_the_posteriors_say():
    found = words_in_time(details("..ab..__.b.好.", ("a", "b", "<space>", "b", "好")))
    assert [word.word for word in found] == ["ab", "b", "好"]
    assert [(word.start, word.end) for word in found] == [
        pytest.approx((0.2, 0.4)),
        pytest.approx((0.9, 1.0)),
        pytest.approx((1.1, 1.2)),
    ]


def test_no_words_without_an_alignment():
    one = details(".a.", ("a",))
    assert words_in_time(replace(one, vocabulary=None)) is None
    assert words_in_time(replace(one, ctc=None)) is None
    assert words_in_time(replace(one, tokens=("z",))) is None
    assert words_in_time(replace(one, tokens=("a",) * 4)) is None  # more than fit
    assert words_in_time(replace(one, tokens=())) is None


def test_rows_are_the_active_units_in_order_of_time():
    assert ctc_rows(details("..b..a.b", ()).ctc) == [4, 3]
    assert ctc_rows(details("....", ()).ctc) == []


def test_token_labels():
    assert [shown_token(t) for t in ("<space>", " ", "\u2581the", "好")] == ["␣", "␣", "␣the", "好"]


def test_every_combination_of_pieces_can_be_drawn(experiments):
    (whole, _, _) = read_experiments(experiments)
    full = read_details(whole.decodes[0].details[0])
    svg = utterance_picture(full)
    assert svg.count("<image") == 4  # film, units, blank, attention
    for text in ("mouth", "transcript", "CTC posteriors", "cross-attention", "blank", "end"):
        assert f">{text}" in svg or text in svg
    assert full.text.split()[0] in re.findall(r">(\w+)</text>", svg)
    assert "<metadata" not in svg and 'id="figure' not in svg

    empty = replace(full, ctc=None, cross_attention=None, crops=None)
    assert utterance_picture(empty) == ""
    for field in ("ctc", "cross_attention", "crops"):
        for picture in (
            utterance_picture(replace(full, **{field: None})),
            utterance_picture(replace(empty, **{field: getattr(full, field)})),
        ):
            assert picture.startswith("<svg")
    assert "#3" in utterance_picture(replace(full, vocabulary=None))


def test_dollar_signs_and_chinese_are_plain_text():
    svg = utterance_picture(details(".$.好.", ("$x_", "好")))
    assert "$x_" in svg and "好" in svg


def test_long_utterance_stays_small():
    one = details("a.b." * 400, ("a", "b") * 400)
    attention = np.random.default_rng(0).random((1, 2, 801, 1600)).astype(np.float16)
    svg = utterance_picture(replace(one, cross_attention=attention))
    height = float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg).group(1))
    assert height < 72 * 16
    assert len(svg) < 3_000_000
    # Noise is what compresses worst: 24,000 cells of 3 bytes, in base 64, a picture.
    assert len(heads_picture(attention)) < 3 * 24_000 * 3 * 4 / 3 * 1.2


def test_shrinking_keeps_spikes():
    picture = np.zeros((1001, 2003))
    picture[777, 1234] = 1
    small = _shrink(picture, 100, 200)
    assert small.shape == (100, 200)
    ((row, column),) = np.argwhere(small)
    assert abs(row / 100 - 777 / 1001) <= 0.01 and abs(column / 200 - 1234 / 2003) <= 0.005
    assert _shrink(picture, 2000, 3000) is picture


def test_heads():
    svg = heads_picture(np.random.default_rng(0).random((3, 4, 7, 30)))
    assert svg.count("<image") == 3 * (4 + 1)
    for text in ("layer 1", "layer 3", "head 4", "mean"):
        assert text in svg
