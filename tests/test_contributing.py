"""What CONTRIBUTING.md shows works as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from speechattn.cli import main
from speechattn.data.tables import read_table
from speechattn.data.tokenizers.tokenizer import Tokenizer
from speechattn.model.directory import build_model, save_model_dir

PAGE = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
CLASS = "blank_penalty.BlankPenaltySearch"


@pytest.fixture
def model(tmp_path, monkeypatch, tiny_model, tiny_corpus):
    """A function of a `search:` section that makes a model directory; the page's code is there."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(code.splitlines()) <= 40
    (tmp_path / "blank_penalty.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    section = tiny_model("audio")
    section["audio"]["encoder"]["init_args"] |= {"chunk_size": 4, "left_context": 8}
    section["audio"]["frontend"]["init_args"]["normalise"] = "none"
    tokenizer = Tokenizer.load(tiny_corpus.folder / "tokens")

    def make(search) -> Path:
        torch.manual_seed(1)
        network = build_model(section, tokenizer.vocab_size)
        with torch.no_grad():
            network.ctc.bias[0] += 3.0  # blank wins where it has no penalty
        config = {"model": section, "search": search}
        save_model_dir(tmp_path / "model", config, network.state_dict(), tokenizer, {})
        return tmp_path / "model"

    return make


def text_of(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_a_search_of_a_user(model, tiny_corpus, tmp_path, capsys):
    name = list(tiny_corpus.texts)[-1]
    sound = tiny_corpus.folder / f"{name}.flac"
    penalized = {"class_path": CLASS, "init_args": {"penalty": 100.0}}
    folder = model(penalized)
    allow = ("--model", folder, "--allow", "blank_penalty")
    text = text_of(capsys, "transcribe", *allow, sound).strip()
    assert text
    without = text_of(capsys, "transcribe", *allow, "--set", "penalty=0", sound).strip()
    assert len(without) < len(text)
    streamed = text_of(capsys, "stream", *allow, sound)
    assert " ".join(line.split("\t")[2] for line in streamed.splitlines()) == text
    cuts = tiny_corpus.folder / "cuts_dev.jsonl.gz"
    text_of(capsys, "decode", *allow, "--cuts", cuts, "--output", tmp_path / "decoded")
    assert read_table(tmp_path / "decoded" / "hyp.tsv").texts[name] == text
    folder = model("CtcGreedySearch")
    chosen = ("--search", CLASS, "--set", "penalty=100")
    assert text_of(capsys, "transcribe", *allow, *chosen, sound).strip() == text


def test_a_search_of_a_user_has_to_be_allowed(model, tiny_corpus, capsys):
    folder = model({"class_path": CLASS})
    sound = tiny_corpus.folder / f"{next(iter(tiny_corpus.texts))}.flac"
    assert main(["transcribe", "--model", str(folder), str(sound)]) == 1
    assert "blank_penalty" in capsys.readouterr().err
