"""Every command line of the recipes and the documentation, against the parsers."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechattn.cli import COMMANDS
from speechattn.cli.parser import UsageError, make_parser, parse_arguments

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(ROOT.glob("recipes/**/*.sh"))
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*/*.md")])
CALL = re.compile(r"(?:^|[ `(])(speechattn [a-z]|decode \d )")
REST = ("...", "[@]", "$@", "$(crops_of", "[--", "|")  # what stands for more words than are written


def lines(path: Path) -> Iterator[str]:
    """Yield what a file calls, from the name of the program on."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    if path.suffix == ".md":
        spans = re.findall(r"`(speechattn [^`]+)`", text)  # may leave out what is required
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        text = "\n".join([*(f"{span} ..." for span in spans), *blocks])
    for line in text.splitlines():
        if not line.lstrip().startswith("#") and "`" not in line and (match := CALL.search(line)):
            yield line[match.start(1) :]


def words_of(line: str) -> list[str]:
    """Return the words of a line, those of options that depend on a variable among them."""
    line = re.sub(r"\$\{\w+(?:\[0\])?:\+(.*?)\}(?= |$)", r"\1", line.split("  #")[0])
    line = re.sub(r"\$\([^()]*(?:\([^()]*\))*[^()]*\)|\$\{[^}]*\}|\$\d|\$\w+", "1", line)
    line = re.split(r" > | \| |\);|\)$|;", line)[0]
    if line.startswith("decode"):  # the function of lib.sh
        called = r"speechattn decode --model \1 --cuts \2 --output \3"
        line = re.sub(r"decode\s+\S+\s+(\S+)\s+(\S+)\s+(\S+)", called, line)
    return shlex.split(line)[1:]


CALLS = [(path, line) for path in (*SCRIPTS, *PAGES) for line in lines(path)]


def test_there_are_calls():
    assert {path.name for path, _ in CALLS} >= {"lib.sh", "run.sh", "README.md", "graphs.md"}
    assert len(CALLS) > 50


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0].name}: {call[1][:60]}")
def test_a_call_is_understood(call):
    words = words_of(call[1])
    name = next(" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS)
    parser = make_parser(name, COMMANDS[name])
    rest = words[name.count(" ") + 1 :]
    options = {word.split("=")[0] for word in rest if word.startswith("--")}
    assert options <= set(parser._option_string_actions), options
    if len(rest) == 0 or any(mark in call[1] for mark in REST):
        return  # the command's name alone, or a part of a line
    try:
        parse_arguments(parser, rest)
    except UsageError as error:
        # Variables stand as 1, which is no choice.
        assert "not '1'" in str(error), error


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_is_bash(script):
    subprocess.run(["bash", "-n", script], check=True)
