"""A search of a user's own, in a file outside the package, by a line of configuration."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from speechattn import Transcriber
from speechattn.cli import main
from speechattn.data.media import read_audio

PLUGIN = Path(__file__).parents[2] / "plugins" / "confident_search.py"


@pytest.fixture
def folder(tiny_model_dir, tmp_path, monkeypatch):
    """A function of threshold that gives the directory of a model with the search of a plug-in."""
    shutil.copy(PLUGIN, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda threshold: directory(tiny_model_dir("audio"), tmp_path, threshold)
    sys.modules.pop("confident_search", None)


def directory(source: Path, folder: Path, threshold: float) -> Path:
    copy = shutil.copytree(source, folder / f"model{threshold}")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["search"] = {
        "class_path": "confident_search.ConfidentSearch",
        "init_args": {"threshold": threshold},
    }
    encoder = config["model"]["audio"]["encoder"]["init_args"]
    encoder |= {"chunk_size": 4, "left_context": 8}
    config["model"]["audio"]["frontend"]["init_args"]["normalise"] = "none"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    return copy


def test_files_streams_and_test_sets(folder, tiny_corpus, tmp_path, capsys):
    cuts, wave = tiny_corpus.folder / "cuts_dev.jsonl.gz", next(tiny_corpus.folder.glob("*.flac"))
    texts = []
    for threshold in (0.0, 2.0):
        model = ["--model", str(folder(threshold)), "--allow", "confident_search"]
        assert main(["transcribe", *model, str(wave)]) == 0
        texts.append(capsys.readouterr().out.strip())
        assert main(["stream", *model, "--format", "json", str(wave)]) == 0
        updates = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert "".join(update["text"] for update in updates) == texts[-1]
        output = tmp_path / f"decoded{threshold}"
        assert main(["decode", *model, "--cuts", str(cuts), "--output", str(output)]) == 0
        section = yaml.safe_load((output / "search.yaml").read_text())
        assert section == {
            "class_path": "confident_search.ConfidentSearch",
            "init_args": {"threshold": threshold},
        }
        spoken = [line.split("\t")[1] for line in (output / "hyp.tsv").read_text().splitlines()]
        assert any(spoken) == (threshold == 0)
        capsys.readouterr()
    assert texts[0] and not texts[1]  # nothing reaches a threshold above 1


def test_an_option_of_it_by_a_command(folder, tiny_corpus, capsys):
    wave = next(tiny_corpus.folder.glob("*.flac"))
    model = ["--model", str(folder(0.0)), "--allow", "confident_search"]
    assert main(["transcribe", *model, str(wave), "--set", "threshold=2"]) == 0
    assert capsys.readouterr().out.strip() == ""


def test_it_has_to_be_allowed(folder, tiny_corpus):
    with pytest.raises(Exception, match="confident_search.ConfidentSearch.*not part of speechattn"):
        Transcriber.from_pretrained(folder(0.0))
    transcriber = Transcriber.from_pretrained(folder(1.0), allow=["confident_search"])
    wave = read_audio(next(tiny_corpus.folder.glob("*.flac")))
    text = transcriber.transcribe(wave).text
    assert text == "".join(update.text for update in transcriber.stream([wave]))
