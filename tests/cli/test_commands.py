"""Commands on small inputs, their output and exit statuses."""

import json

import numpy as np
import pytest
import soundfile
import yaml

from speechattn import cli
from speechattn.cli import main
from speechattn.data.tables import write_table


@pytest.fixture
def tables(tmp_path):
    texts = {"u1": "bin blue at five now", "u2": "set red by two please"}
    write_table(tmp_path / "ref.tsv", texts, {"u1": "s1", "u2": "s2"})
    write_table(tmp_path / "hyp.tsv", {**texts, "u2": "set red two please"})
    return tmp_path


def test_score(tables, capsys):
    arguments = ["score", "--ref", str(tables / "ref.tsv"), "--hyp", str(tables / "hyp.tsv")]
    assert main([*arguments, "--unit", "word", "--json", str(tables / "s.json")]) == 0
    assert "10.0" in capsys.readouterr().out
    assert "10" in (tables / "s.json").read_text()
    assert json.loads((tables / "s.json").read_text())
    assert main([*arguments, "--alignments"]) == 0


def test_score_of_a_decode_dir(tables, capsys):
    assert main(["score", "--decode-dir", str(tables)]) == 0
    assert json.loads((tables / "score.json").read_text()).keys() == {"char", "word"}
    capsys.readouterr()


def test_score_exit_statuses(tables, capsys):
    both = ["--ref", str(tables / "ref.tsv"), "--hyp", str(tables / "hyp.tsv")]
    write_table(tables / "hyp.tsv", {"u1": "bin blue"})
    assert main(["score", *both]) == 1
    assert "u2" in capsys.readouterr().err
    assert main(["score", *both, "--allow-missing"]) == 0
    write_table(tables / "hyp.tsv", {"u1": "bin", "u2": "set", "u3": "lay"})
    assert main(["score", *both]) == 1
    assert "u3" in capsys.readouterr().err
    assert main(["score", *both, "--allow-extra"]) == 0
    assert main(["score", "--ref", str(tables / "ref.tsv")]) == 1
    assert main(["score", "--ref", str(tables / "no.tsv"), "--hyp", str(tables / "hyp.tsv")]) == 1
    assert "no.tsv" in capsys.readouterr().err


# ------------------------------------------------------------------------------ transcribe


@pytest.fixture
def sounds(tmp_path):
    for name in ("a", "b"):
        soundfile.write(
            tmp_path / f"{name}.wav", 0.1 * np.random.default_rng(0).random(8000), 16000
        )
    (tmp_path / "empty.wav").touch()
    return tmp_path


def test_transcribe(tiny_model_dir, sounds, capsys):
    model = str(tiny_model_dir("audio"))
    files = [str(sounds / "a.wav"), str(sounds / "b.wav")]
    assert main(["transcribe", "--model", model, *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == files
    for kind in ("json", "srt", "vtt", "tsv"):
        assert main(["transcribe", "--model", model, files[0], "--format", kind]) == 0
        assert capsys.readouterr().out or kind == "srt"


def test_transcribe_with_failures(tiny_model_dir, sounds, capsys):
    model = str(tiny_model_dir("audio"))
    files = [str(sounds / name) for name in ("empty.wav", "a.wav", "gone.wav", "b.wav")]
    for batch in ("1", "8"):
        assert main(["transcribe", "--model", model, "--batch-size", batch, *files]) == 1
        out, err = capsys.readouterr()
        assert [line.split("\t")[0] for line in out.splitlines()] == [files[1], files[3]]
        assert f"{files[0]}: empty" in err and f"{files[2]}: no such file" in err
    assert main(["transcribe", "--model", model, files[0]]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "empty.wav" in err


def test_transcribe_into_a_folder(tiny_model_dir, sounds, capsys):
    model, output = str(tiny_model_dir("audio")), sounds / "out"
    files = [str(sounds / name) for name in ("a.wav", "empty.wav", "b.wav")]
    arguments = ["transcribe", "--model", model, "--format", "vtt", "--output-dir", str(output)]
    assert main([*arguments, *files]) == 1
    assert sorted(p.name for p in output.iterdir()) == ["a.wav.vtt", "b.wav.vtt"]
    assert (output / "a.wav.vtt").read_text().startswith("WEBVTT")
    (sounds / "more").mkdir()
    twice = str(sounds / "more" / "a.wav")
    capsys.readouterr()
    assert main([*arguments, *files, twice]) == 1
    assert "a.wav" in capsys.readouterr().err


def test_the_search_of_a_command(tiny_model_dir, sounds, capsys):
    transcribe = ["transcribe", "--model", str(tiny_model_dir("audio")), str(sounds / "a.wav")]
    file = sounds / "search.yaml"
    file.write_text("search: CtcGreedySearch\n")
    assert main([*transcribe, "--search", str(file)]) == 0
    greedy = capsys.readouterr().out
    assert main([*transcribe, "--search", "CtcGreedySearch"]) == 0
    assert capsys.readouterr().out == greedy
    beam = ["--search", "CtcBeamSearch", "--set", "search.beam_size=2", "--set", "nbest=2"]
    assert main([*transcribe, *beam]) == 0
    for wrong, message in (
        (
            ["--set", "beem_size=3"],
            "beem_size: no such option of JointSearch; did you mean beam_size?",
        ),
        (["--search", "CtcBeem"], "did you mean CtcBeamSearch?"),
    ):
        capsys.readouterr()
        assert main([*transcribe, *wrong]) == 1
        assert message in capsys.readouterr().err


def test_no_model(sounds, capsys):
    assert main(["transcribe", "--model", str(sounds), str(sounds / "a.wav")]) == 1
    assert "no model directory" in capsys.readouterr().err


# ------------------------------------------------------------------------------ a whole path


def test_tokens_train_average_decode_score(tiny_corpus, tiny_model, tmp_path, capsys):
    data, exp = tiny_corpus.folder, tmp_path / "exp"
    config = tmp_path / "c.yaml"
    sections = {"model": tiny_model("audio"), "search": {"class_path": "JointSearch"}}
    config.write_text(yaml.safe_dump(sections))
    train_cuts, dev_cuts = data / "cuts_train.jsonl.gz", data / "cuts_dev.jsonl.gz"
    tokens, model, decoded = tmp_path / "tokens", exp / "model", exp / "decode_dev"
    common = f"--config {config} --tokens {tokens} --exp {exp}"
    common += " --set training.max_epochs=1 --set data.num_workers=0 --set search.beam_size=2"
    for line in (
        f"tokens {train_cuts} --output {tokens}",
        f"train {common} --train-cuts {train_cuts} --valid-cuts {dev_cuts}",
        f"average {common} --best 1",
        f"decode --model {model} --cuts {dev_cuts} --output {decoded} --details 1"
        f" --noise {data / 'noise.wav'} --snr 10 --noise-part 0.5 1",
        f"score --decode-dir {decoded}",
    ):
        assert main(line.split()) == 0, line
    assert (decoded / "score.json").exists()
    assert json.loads((exp / "train" / "done.json").read_text())["epochs"] == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train {common} --config {tmp}/none.yaml", "none.yaml"),
        ("train {common} --config {tmp}/c.yaml --set training.epochs=3", "epochs"),
        ("train {common} --config {tmp}/c.yaml --set traning.max_epochs=3", "traning"),
        ("train {common} --config {tmp}/c.yaml --set a", "key=value"),
        ("train {common} --config {tmp}/c.yaml", "none.jsonl.gz"),
        ("average --config {tmp}/c.yaml --tokens {data}/tokens --exp {tmp}", "train first"),
        ("decode --model {tmp} --cuts x --output {tmp}/d", "config.yaml"),
        ("decode --model {model} --cuts {tmp}/no.jsonl.gz --output {tmp}/d", "no.jsonl.gz"),
        ("decode --model {model} --cuts x --output {tmp}/d --noise {tmp}/n.wav", "n.wav"),
    ],
)
def test_errors_are_one_line(
    tiny_corpus, tiny_model, tiny_model_dir, tmp_path, capsys, line, message
):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": tiny_model("audio")}))
    common = (
        f"--tokens {tiny_corpus.folder}/tokens --exp {tmp_path} "
        f"--train-cuts {tmp_path}/none.jsonl.gz --valid-cuts {tmp_path}/none.jsonl.gz"
    )
    line = line.format(
        common=common, tmp=tmp_path, data=tiny_corpus.folder, model=tiny_model_dir("audio")
    )
    assert main(line.split()) == 1
    err = capsys.readouterr().err
    assert message in err and f"speechattn {line.split()[0]}: " in err


def test_interrupt(monkeypatch, capsys):
    def interrupted() -> None:
        """Wait."""
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "doctor", interrupted)
    assert main(["doctor"]) == 130
    assert "run it again" in capsys.readouterr().err


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    assert "torch" in json.loads(capsys.readouterr().out)
