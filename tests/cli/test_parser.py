"""Parsers made from signatures: what they take, what their help says, what they refuse."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from speechattn.cli import COMMANDS
from speechattn.cli.parser import UsageError, call, make_parser, parse_arguments


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise to mix in."""

    noise: Annotated[Path | None, "sound file"] = None
    part: Annotated[tuple[float, float], "stretch of it"] = (0.0, 1.0)


def command(
    files: Annotated[tuple[Path, ...], "files to read"],
    *,
    model: Annotated[Path, "model directory"],
    noise: Noise,
    unit: Annotated[Literal["char", "word"], "unit of the errors"] = "char",
    order: Annotated[int, "longest n-gram, at most 90% of it"] = 4,
    alpha: Annotated[float | None, "share (default: chosen)"] = None,
    live: Annotated[bool, "no faster"] = False,
    overrides: Annotated[tuple[str, ...], "change the config", "--set", "KEY=VALUE"] = (),
    text: Annotated[tuple[Path, ...], "texts"] = (),
    dev: Annotated[tuple[tuple[str, ...], ...], "development sets"] = (),
) -> dict:
    """Do something.

    And more.
    """
    return locals()


@pytest.fixture
def parser():
    return make_parser("test", command)


def test_values_have_the_types_of_the_signature(parser):
    line = "a b --model m --unit word --order 2 --alpha 1 --live --noise n --part 0 0.5"
    values = call(command, parse_arguments(parser, line.split()))
    assert values["files"] == [Path("a"), Path("b")] and values["model"] == Path("m")
    assert (values["unit"], values["order"], values["alpha"], values["live"]) == (
        "word",
        2,
        1,
        True,
    )
    assert values["noise"].noise == Path("n") and list(values["noise"].part) == [0.0, 0.5]


def test_lists_are_repeated_or_of_several_words(parser):
    line = "--model m --set a=1 f --set b=2 --text x y --text z --dev 1 2 --dev 3 4"
    values = call(command, parse_arguments(parser, line.split()))
    assert values["files"] == [Path("f")] and values["overrides"] == ["a=1", "b=2"]
    assert values["text"] == [Path("x"), Path("y"), Path("z")]
    assert values["dev"] == [["1", "2"], ["3", "4"]]
    values = call(command, parse_arguments(parser, "f --model m".split()))
    assert not values["overrides"] and not values["text"] and values["noise"] == Noise(part=[0, 1])


def test_help_says_meanings_and_defaults(parser):
    text = " ".join(parser.format_help().split())
    assert text.startswith("usage: speechattn test --model PATH [options] FILES ...")
    for part in (
        "Do something. And more.",
        "required options: --model PATH model directory options:",
        "--unit {char,word} unit of the errors (default: char)",
        "longest n-gram, at most 90% of it (default: 4)",
        "share (default: chosen)",
        "--live no faster",
        "--set KEY=VALUE change the config (default: none)",
        "noise to mix in: --noise PATH sound file (default: none)",
        "--part X X stretch of it (default: 0.0 1.0)",
    ):
        assert part in text, text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "missing: FILES, --model"),
        ("f --model m --unitt word", "--unitt: no such option; did you mean --unit? Valid: "),
        ("f --model m --uni word", "--uni: no such option; did you mean --unit?"),
        ("f --model", "--model: a value is needed"),
        ("f --model m --part 1", "--part: 2 values are needed"),
        ("f --model m --part 1 b", "--part: a number is needed, not 'b'"),
        ("f --model m --live=3", "--live takes no value, not '3'"),
        ("f --model m --order many", "--order: a whole number is needed, not 'many'"),
        ("f --model m --alpha many", "--alpha: a number is needed, not 'many'"),
        ("f --model m --unit wort", "--unit: not 'wort'; did you mean word? Valid: char, word"),
    ],
)
def test_what_is_wrong_is_said(parser, line, message):
    with pytest.raises(UsageError) as raised:
        parse_arguments(parser, line.split())
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value) and "<class" not in str(raised.value)


def test_a_word_too_many():
    with pytest.raises(UsageError, match="now: one too many"):
        parse_arguments(make_parser("doctor", COMMANDS["doctor"]), ["now"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_meaning_and_a_default(name):
    parser = make_parser(name, COMMANDS[name])
    assert parser.description
    for action in parser._actions:
        if action.help == "==SUPPRESS==":
            continue
        assert action.help, action.dest
        optional = action.option_strings and not action.required and action.nargs != 0
        assert ("(default: " in action.help) == bool(optional or action.nargs == "?"), action.dest
        assert "None" not in action.help
