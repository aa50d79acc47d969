"""Shell completion, as bash runs it."""

import subprocess
import sys

import pytest

from speechattn.cli import main


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> str:
    pytest.importorskip("shtab", reason="pip install '.[completion]'")
    run = [sys.executable, "-m", "speechattn.cli", "completion", "bash"]
    path = tmp_path_factory.mktemp("completion") / "speechattn.bash"
    path.write_text(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    return str(path)


def complete(script: str, line: str) -> set[str]:
    """Return what bash offers for the last word of a line."""
    words = [*line.split(), *([""] if line.endswith(" ") else [])]
    program = (
        f"source {script}; COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}\n"
        '_shtab_speechattn; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    run = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("speechattn tra", {"train", "transcribe", "train-lm"}),
        ("speechattn prepare ", {"tsv", "grid", "cnvsrc"}),
        ("speechattn score --al", {"--alignments", "--allow-missing", "--allow-extra"}),
        ("speechattn score --unit ", {"char", "word"}),
        ("speechattn prepare cnvsrc --tr", {"--track"}),
        ("speechattn prepare tsv --tr", set()),
    ],
)
def test_bash_completes(script, line, offered):
    assert complete(script, line) == offered


def test_zsh_has_a_script(capsys):
    pytest.importorskip("shtab", reason="pip install '.[completion]'")
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef speechattn")


def test_without_shtab(monkeypatch, capsys):
    monkeypatch.setattr("speechattn.cli.find_spec", lambda name: None)
    assert main(["completion", "bash"]) == 1
    error = capsys.readouterr().err
    assert (
        "pip install 'speechattn[completion]'" in error and "pip install '.[completion]'" in error
    )
