"""Fusion of decode folders and tables: reading, units, tuning, what is written."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from speechattn.data.tables import read_table
from speechattn.errors import ConfigError, SpeechattnError
from speechattn.evaluation import score_both
from speechattn.evaluation.fusion.files import (
    UNKNOWN_CONFIDENCE,
    fuse,
    join_units,
    make_units,
    read_system,
)
from speechattn.evaluation.fusion.rover import RoverOptions
from speechattn.evaluation.fusion.tuning import (
    DevSet,
    choose_options,
    choose_weights,
    with_neighbours,
)

Words = list[tuple[str, float]]


def spans(pieces: Words) -> list[dict]:
    return [{"text": t, "start": 0.0, "end": 0.1, "confidence": c} for t, c in pieces]


def folder(
    path: Path,
    utterances: dict[str, Words],
    references: dict[str, str] | None = None,
    tokens: dict[str, Words] | None = None,
    space: str = " ",
) -> Path:
    """A decode folder as `speechattn decode` leaves it."""
    path.mkdir(parents=True)
    lines, table = [], []
    for key, words in utterances.items():
        text = space.join(word for word, _ in words)
        table.append(f"{key}\t{text}\n")
        transcript = {"id": key, "text": text, "words": spans(words)}
        transcript["tokens"] = spans((tokens or utterances)[key])
        lines.append(json.dumps(transcript, ensure_ascii=False) + "\n")
    (path / "hyp.tsv").write_text("".join(table), encoding="utf-8")
    # In another order than the table, as a decoder that sorts by length writes it.
    (path / "transcripts.jsonl").write_text("".join(reversed(lines)), encoding="utf-8")
    if references:
        text = "".join(f"{k}\ts1\t{v}\n" for k, v in references.items())
        (path / "ref.tsv").write_text(text, encoding="utf-8")
    return path


def table(path: Path, texts: dict[str, str]) -> Path:
    path.write_text("".join(f"{k}\t{v}\n" for k, v in texts.items()), encoding="utf-8")
    return path


def sure(text: str, *confidences: float) -> Words:
    words = text.split()
    return list(zip(words, confidences or (0.9,) * len(words), strict=True))


def hypotheses(path: Path) -> dict[str, str]:
    return read_table(path / "hyp.tsv").texts


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    references = {"u1": "place red at g nine now", "u2": "set white by b two soon"}
    return [
        folder(
            tmp_path / "a",
            {
                "u1": sure("place red at d nine now", 0.9, 0.9, 0.9, 0.3, 0.9, 0.9),
                "u2": sure("set white by b two"),
            },
            references,
        ),
        folder(
            tmp_path / "b",
            {
                "u1": sure("place red at g nine now"),
                "u2": sure("set white b two soon"),
            },
            references,
        ),
        folder(
            tmp_path / "c",
            {
                "u1": sure("red at e nine now", 0.9, 0.9, 0.4, 0.9, 0.9),
                "u2": sure("set white by d two soon"),
            },
        ),
    ]


def test_three_systems_with_one_error_each(three, tmp_path):
    chosen = fuse(three, tmp_path / "out", voting="average")
    out = tmp_path / "out"
    assert hypotheses(out) == {"u1": "place red at g nine now", "u2": "set white by b two soon"}
    assert list(hypotheses(out)) == ["u1", "u2"]
    assert (out / "ref.tsv").read_bytes() == (three[0] / "ref.tsv").read_bytes()
    assert score_both(out)["word"].total.errors == 0
    assert chosen == yaml.safe_load((out / "fuse.yaml").read_text())
    assert chosen["systems"][1] == {"path": str(three[1]), "weight": 1.0, "missing": 0}
    # Without confidences the three letters of u1 tie, and the first system's wins.
    fuse([f / "hyp.tsv" for f in three], tmp_path / "plain")
    assert hypotheses(tmp_path / "plain")["u1"] == "place red at d nine now"
    assert not (tmp_path / "plain" / "ref.tsv").exists()


def test_the_first_of_two_is_the_base(three, tmp_path):
    for first, second in ((0, 1), (1, 0)):
        out = tmp_path / f"out{first}"
        fuse([three[first], three[second]], out)
        assert hypotheses(out) == hypotheses(three[first])


@pytest.mark.parametrize("unit", ["word", "char"])
@pytest.mark.parametrize("copies", [1, 3])
def test_one_system_is_written_as_it_was(unit, copies, tmp_path):
    texts = {
        "en": "I'm in London, at 5 o'clock",
        "zh": "今天，我们买A股 和B股。",
        "unk": "bin \u2047 at now",
        "combining": "cafe\u0301 au lait",
        "full": "ＡＢＣ１２３",
        "none": "",
    }
    path = table(tmp_path / "hyp.tsv", texts)
    fuse([path] * copies, tmp_path / "out", unit=unit)
    # The text rule's own: composed characters, no space beside Chinese.
    expected = texts | {"zh": "今天，我们买A股和B股。", "combining": "caf\u00e9 au lait"}
    assert hypotheses(tmp_path / "out") == expected
    for text in expected.values():
        assert join_units(make_units(text, unit), unit) == text


def test_chinese_by_character(tmp_path):
    systems = [
        folder(tmp_path / "a", {"u": [(c, 0.9) for c in "今天天汽很好"]}, space=""),
        folder(tmp_path / "b", {"u": [(c, 0.9) for c in "今天气很好"]}, space=""),
        table(tmp_path / "c.tsv", {"u": "明 天 天 气 很 好 啊"}),
    ]
    for unit in ("char", "word"):
        fuse(systems, tmp_path / unit, unit=unit)
        assert hypotheses(tmp_path / unit) == {"u": "今天天气很好"}


def test_what_differs_in_case_or_width_only_agrees(tmp_path):
    texts = ["x b", "Ａ b", "a B"]
    paths = [table(tmp_path / f"{i}.tsv", {"u": text}) for i, text in enumerate(texts)]
    fuse(paths, tmp_path / "out")
    assert hypotheses(tmp_path / "out") == {"u": "Ａ b"}


def test_confidences_of_words_and_characters(tmp_path):
    path = folder(
        tmp_path / "a",
        {"u": [("at", 0.8), ("今", 0.6), ("天，", 0.4)]},
        tokens={"u": [("▁a", 0.7), ("t", 0.9), ("▁", 0.5), ("今", 0.6), ("天，", 0.4)]},
    )
    (path / "hyp.tsv").write_text("u\tat 今 天，\n", encoding="utf-8")
    found = read_system(path, "word").transcripts["u"]
    # A mark is a word of its own here, in the decoder's table it is the end of the word before.
    assert [(u.text, u.confidence) for u in found] == [
        ("at", pytest.approx(0.8)),
        ("今", 0.6),
        ("天", 0.4),
        ("，", 0.4),
    ]
    found = read_system(path, "char").transcripts["u"]
    assert [(u.text, u.confidence) for u in found] == [
        ("a", 0.7),
        ("t", 0.9),
        ("今", 0.6),
        ("天", 0.4),
        ("，", 0.4),
    ]


def test_spaces_and_unknown_characters_have_their_tokens_confidence():
    pieces = [(" in", 0.9), (" ", 0.2), ("\u2047", 0.1)]
    found = make_units("in \u2047", "char", pieces)
    assert [(u.text, u.confidence) for u in found] == [
        ("i", 0.9),
        ("n", 0.9),
        (" ", 0.2),
        ("\u2047", 0.1),
    ]
    # A character that no piece has: the mean of the pieces.
    found = make_units("ibn", "char", [("in", 0.9), ("n", 0.3)])
    assert [u.confidence for u in found] == pytest.approx([0.9, 0.9, 0.3])
    found = make_units("inns", "char", [("i", 0.9), ("nn", 0.3)])
    assert [u.confidence for u in found] == pytest.approx([0.9, 0.3, 0.3, 0.6])
    assert [u.confidence for u in make_units("a b", "word")] == [UNKNOWN_CONFIDENCE] * 2


def test_missing_utterances(tmp_path):
    systems = [
        table(tmp_path / "a.tsv", {"u1": "a b", "u2": "x"}),
        table(tmp_path / "b.tsv", {"u1": "a c", "u3": "z"}),
        table(tmp_path / "c.tsv", {"u1": "a c", "u2": "y", "u3": ""}),
    ]
    with pytest.raises(SpeechattnError, match=r"a\.tsv.*u3"):
        fuse(systems, tmp_path / "out")
    chosen = fuse(systems, tmp_path / "out", allow_missing=True)
    # No vote where there is no transcript, unlike an empty one: u3 is a tie that z is first in.
    assert hypotheses(tmp_path / "out") == {"u1": "a c", "u2": "x", "u3": "z"}
    assert [s["missing"] for s in chosen["systems"]] == [1, 1, 0]


def test_refusals(three, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="no system"):
        fuse([], out)
    for inside in (three, [f / "hyp.tsv" for f in three]):
        with pytest.raises(ConfigError, match="would be lost"):
            fuse(inside, three[1])
    with pytest.raises(ConfigError, match="2 weights for 3"):
        fuse(three, out, weights=[1, 1])
    with pytest.raises(ConfigError, match="--dev"):
        fuse(three, out, tune_weights=True)
    with pytest.raises(ConfigError, match="2 outputs, but 3"):
        fuse(three, out, dev=[three[:2]])
    with pytest.raises(ConfigError, match=r"no ref\.tsv"):
        fuse(three, out, dev=[[three[2]] * 3])
    with pytest.raises(SpeechattnError, match="no such file"):
        fuse([*three, tmp_path / "d.tsv"], out)
    assert not out.exists()


def test_tables_that_do_not_fit(three, tmp_path):
    (three[2] / "ref.tsv").write_text("u1\tplace red at g nine again\n")
    with pytest.raises(SpeechattnError, match="reference of 'u1' differs"):
        fuse(three, tmp_path / "out")
    (three[2] / "ref.tsv").unlink()
    (three[1] / "hyp.tsv").write_text("u1\tsomething else\nu2\tset white b two soon\n")
    with pytest.raises(SpeechattnError, match="u1.*differs between"):
        fuse(three, tmp_path / "out")
    fuse([three[0], three[1] / "hyp.tsv"], tmp_path / "out")
    (three[0] / "transcripts.jsonl").write_text('{"id": "u1", "te')
    with pytest.raises(SpeechattnError, match=r"transcripts\.jsonl:1"):
        fuse(three, tmp_path / "out")


@pytest.mark.parametrize("wrong", ["NaN", "Infinity", "-0.5", "1.5", "null"])
def test_confidences_that_are_none(three, tmp_path, wrong):
    path = three[1] / "transcripts.jsonl"
    path.write_text(path.read_text().replace('"confidence": 0.9', f'"confidence": {wrong}', 1))
    with pytest.raises(SpeechattnError, match=r"transcripts\.jsonl:1: not a transcript"):
        fuse(three, tmp_path / "out", voting="average")


def test_development_outputs_are_not_overwritten(three, tmp_path):
    for output in (three[0], three[1]):
        before = (output / "hyp.tsv").read_bytes()
        plain = [table(tmp_path / f"{i}.tsv", {"u": "a"}) for i in range(2)]
        with pytest.raises(ConfigError, match="would be lost"):
            fuse(plain, output, dev=[[three[0] / "hyp.tsv", three[1]]])
        assert (output / "hyp.tsv").read_bytes() == before


def dev_set(outputs: list[list[str]], references: list[str], confidences=None) -> DevSet:
    """Systems' words, with a confidence for each system's words."""
    confidences = confidences or [0.5] * len(outputs)
    return DevSet(
        [f"s{s}" for s in range(len(outputs))],
        [
            [make_units(text, "word", [(w, c) for w in text.split()]) for text in texts]
            for texts, c in zip(outputs, confidences, strict=True)
        ],
        [text.split() for text in references],
    )


def test_options_are_those_of_fewest_errors():
    # The unsure majority is wrong: only confidence finds the truth.
    dev = dev_set([["a x", "c"], ["a y", "d"], ["a y", "d"]], ["a x", "c"], [0.9, 0.2, 0.2])
    options = choose_options([dev], np.ones(3))
    assert options.voting == "average"
    assert dev.rate(options, np.ones(3)) == 0.0
    assert dev.rate(RoverOptions("frequency"), np.ones(3)) == pytest.approx(200 / 3)
    assert dev.single_rates == pytest.approx([0.0, 200 / 3, 200 / 3])
    # It wins where 0.9 (1 - a) + a / 3 > 0.2 (1 - a) + 2 a / 3, a < 0.677. So 0 to 0.6
    # are right, 0 to 0.5 with both neighbours, and the centre of these is 0.25.
    assert options.alpha == 0.2
    assert choose_options([dev], np.ones(3), alpha=0.6).alpha == 0.6
    assert choose_options([dev], np.ones(3), voting="maximum").voting == "maximum"
    # Votes do as well where the majority is right.
    fair = dev_set([["b"], ["a"], ["a"]], ["a"])
    assert choose_options([fair], np.ones(3)).voting == "frequency"


def test_a_point_counts_with_its_neighbours():
    grid = np.array([[9.0, 9, 9, 9], [9, 0, 9, 9], [3, 3, 3, 3], [3, 3, 3, 3]])
    smooth = with_neighbours(grid)
    assert smooth.shape == grid.shape
    assert smooth[1, 1] == pytest.approx((5 * 9 + 0 + 3 * 3) / 9)
    assert smooth[3, 3] == 3.0 and smooth[0, 3] == 9.0
    assert smooth.argmin() >= 12
    assert (with_neighbours(np.array([[2.0]])) == 2.0).all()


def test_the_null_arcs_confidence_is_chosen():
    # An insertion that its system is sure of, and a word that two systems are unsure of.
    loud = dev_set([["a b"], ["a"]], ["a"], [0.8, 0.3])
    quiet = dev_set([["a"], ["a b"]], ["a b"], [0.9, 0.7])
    for sets in ([loud], [quiet], [loud, quiet]):
        options = choose_options(sets, np.ones(2), alpha=0.0)
        best = min(
            sum(one.rate(RoverOptions(voting, 0.0, null / 100), np.ones(2)) for one in sets)
            for voting in ("average", "maximum")
            for null in range(101)
        )
        assert sum(one.rate(options, np.ones(2)) for one in sets) == pytest.approx(best)
        assert options.alpha == 0.0
    # Below 0.7 the word stays, above 0.8 the insertion goes.
    assert choose_options([loud], np.ones(2), alpha=0.0).null_confidence > 0.8
    assert choose_options([quiet], np.ones(2), alpha=0.0).null_confidence < 0.7
    assert choose_options([loud], np.ones(2), null_confidence=0.1).null_confidence == 0.1


def test_weights_that_are_chosen_have_fewer_errors():
    dev = dev_set([["x", "x", "a"], ["y", "y", "b"], ["y", "y", "c"]], ["x", "x", "c"])
    options = RoverOptions()
    assert dev.rate(options, np.ones(3)) == pytest.approx(100.0)
    weights = choose_weights([dev], np.ones(3), options)
    assert dev.rate(options, weights) < 50
    assert weights.mean() == pytest.approx(1.0)
    assert (choose_weights([dev_set([["x"]], ["x"])], np.ones(1), options) == 1).all()


def test_fuse_on_a_development_set(tmp_path):
    """The best system last: it is moved to the front, with its weight and its outputs."""
    references = {"u1": "a b c", "u2": "d e f"}
    outputs = [
        {"u1": "a x y", "u2": "d e f"},
        {"u1": "a b y", "u2": "d e z"},
        {"u1": "a b c", "u2": "d e f"},
    ]
    dev = [
        folder(tmp_path / f"dev{s}", {k: sure(v) for k, v in texts.items()}, references)
        for s, texts in enumerate(outputs)
    ]
    test = [table(tmp_path / f"{s}.tsv", {"u": text}) for s, text in enumerate("pqr")]
    out = tmp_path / "out"
    chosen = fuse(test, out, weights=[1, 2, 2.5], dev=[dev], order_by_dev=True)
    assert [Path(s["path"]).name for s in chosen["systems"]] == ["2.tsv", "0.tsv", "1.tsv"]
    assert [s["weight"] for s in chosen["systems"]] == [2.5, 1, 2]
    (one,) = chosen["dev"]
    assert one["error_rates"] == pytest.approx([0.0, 100 / 3, 100 / 3], abs=1e-3)
    assert one["paths"] == [str(dev[s]) for s in (2, 0, 1)]
    assert hypotheses(out) == {"u": "r"}
    printed = io.StringIO()
    console = Console(file=printed, width=120)
    chosen = fuse(test, out, dev=[dev, dev[:]], tune_weights=True, console=console)
    assert len(chosen["dev"]) == 2
    assert chosen["dev"][0]["fused_error_rate"] == 0.0
    assert [Path(s["path"]).name for s in chosen["systems"]] == ["0.tsv", "1.tsv", "2.tsv"]
    fused = next(line for line in printed.getvalue().splitlines() if "fused" in line)
    assert fused.split()[-4:] == ["0.00", "\u2502", "0.00", "\u2502"]
    assert "33.33" in printed.getvalue() and "voting " in printed.getvalue()
    assert f"1 utterances written to {out}" in printed.getvalue()
    fuse(test, out, alpha=0.3)
    assert yaml.safe_load((out / "fuse.yaml").read_text())["voting"] == "average"
    (dev[0] / "ref.tsv").write_text("u1\ts1\ta b c\n")
    with pytest.raises(SpeechattnError, match=r"ref\.tsv.*u2"):
        fuse(test, out, dev=[dev])
