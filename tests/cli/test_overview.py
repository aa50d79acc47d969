"""`speechattn --help`, wrong commands, and what is imported for them."""

import subprocess
import sys

import pytest

from speechattn import __version__
from speechattn.cli import COMMANDS, GROUPS, main
from speechattn.data.tables import write_table

HEAVY = {"torch", "lightning", "lhotse", "cv2", "av"}


def test_help_lists_every_command_in_its_group(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    for title, group in GROUPS.items():
        start = lines.index(f"{title}:")
        for line, name in zip(lines[start + 1 :], group, strict=False):
            assert line.startswith(f"  {name} ") and len(line.split()) > 2
    assert max(map(len, lines)) <= 100


def test_help_of_commands_of_two_words(capsys):
    assert main(["prepare", "--help"]) == 0
    text = capsys.readouterr().out
    assert "prepare tsv" in text and "prepare grid" in text and "score" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name, capsys):
    with pytest.raises(SystemExit) as raised:
        main([*name.split(), "--help"])
    assert raised.value.code == 0
    assert f"usage: speechattn {name} " in capsys.readouterr().out


def test_a_command_shows_its_own_options_only(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "tsv", "--help"])
    text = capsys.readouterr().out
    assert "--table" in text and "--track" not in text and "--split" not in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: speechattn [--verbose] COMMAND"),
        (["prepare"], "usage: speechattn [--verbose] prepare COMMAND"),
        (["scor"], "speechattn: scor: no such command; did you mean score?"),
        (["--verbos", "score"], "--verbos: no such command"),
        (["prepare", "lrs"], "speechattn prepare: lrs: no such command. Valid: cnvsrc, grid, tsv"),
        (["score", "--unit", "phone"], "speechattn score: --unit: not 'phone'. Valid: char, word"),
        (["score", "--uni", "word"], "did you mean --unit?"),
        (["transcribe", "x.wav"], "speechattn transcribe: missing: --model"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err and not out


def test_output_that_nobody_reads():
    run = [sys.executable, "-u", "-m", "speechattn.cli"]
    script = f"{' '.join(run)} --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() in ("0", "141") and not done.stderr


def modules_after(arguments: list[str]) -> set[str]:
    script = (
        "import sys; from speechattn.cli import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as done: status = done.code\n"
        "print('modules', *sys.modules); sys.exit(status)"
    )
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


def test_help_imports_next_to_nothing():
    assert not modules_after(["--help"]) & {*HEAVY, "jsonargparse", "numpy", "rich"}
    for name in ("train", "transcribe", "roi"):
        assert not modules_after([name, "--help"]) & {*HEAVY, "numpy"}


def test_score_does_not_import_torch(tmp_path):
    write_table(tmp_path / "ref.tsv", {"u1": "bin blue"})
    write_table(tmp_path / "hyp.tsv", {"u1": "bin blew"})
    tables = ["--ref", str(tmp_path / "ref.tsv"), "--hyp", str(tmp_path / "hyp.tsv")]
    assert not modules_after(["score", *tables]) & HEAVY
    assert not modules_after(["score", "--decode-dir", str(tmp_path)]) & HEAVY
