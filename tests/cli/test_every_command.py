"""Every command once, on tiny inputs, in the order in which a user comes to need them."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch import nn

from speechattn.cli import COMMANDS, main

sys.path.insert(0, str(Path(__file__).parents[1] / "importing"))
from auto_avsr_reference import random_state, shapes  # noqa: E402

DATA = (
    "prepare tsv {work}/table {work}/manifests --workers 1",
    "tokens {work}/manifests/cuts_train.jsonl.gz --output {work}/tokens",
    "import-tokens {work}/units.txt --output {work}/listed_tokens",
    "align {data}/cuts_train.jsonl.gz {data}/cuts_dev.jsonl.gz --tokens {data}/tokens "
    "--output {work}/aligned",
    "augment-sheet --config {work}/c.yaml --crops {data}/crops --output {work}/sheet.png --draws 1",
)
SYNTHETIC = (
    "synth-corpus grid {work}/grid --speakers 1 --utterances 3 --workers 0",
    "prepare grid {work}/grid {work}/grid_manifests --workers 1",
    "roi {work}/grid_manifests/cuts_train.jsonl.gz --output {work}/grid_crops --workers 0",
    "synth-corpus cnvsrc {work}/cnvsrc --clips 16 --speakers 4 --no-damaged --workers 0",
    "prepare cnvsrc {work}/cnvsrc {work}/cnvsrc_manifests --track multi --workers 1",
)
TRAINING = (
    "train --config {work}/c.yaml --tokens {data}/tokens --exp {work}/exp "
    "--train-cuts {data}/cuts_train.jsonl.gz --valid-cuts {data}/cuts_dev.jsonl.gz",
    "average --config {work}/c.yaml --tokens {data}/tokens --exp {work}/exp --best 1",
    "combine --model audio={audio} --model video={video} --weight audio=3 --weight video=1 "
    "--output {work}/late",
)
RECOGNITION = (
    "transcribe --model {audio} {sound}",
    "decode --model {audio} --cuts {data}/cuts_dev.jsonl.gz --output {work}/decode_a "
    "--search CtcGreedySearch --details 0",
    "decode --model {audio} --cuts {data}/cuts_dev.jsonl.gz --output {work}/decode_b "
    "--set beam_size=2 --details 0 --device cpu --threads 1",
    "score --decode-dir {work}/decode_a",
    "delay {work}/decode_a --ref-times {work}/aligned/cuts_dev.jsonl.gz",
    "fuse {work}/decode_a {work}/decode_b --output {work}/fused",
    "report {work} --output {work}/report.html",
)
STREAM = ("stream --model {streaming} {sound} --search CtcGreedySearch",)
LANGUAGE = (
    "ngram --text {work}/text --tokens {data}/tokens --order 2 --output {work}/lm.arpa",
    "train-lm --config {work}/lm.yaml --text {work}/text --tokens {data}/tokens --exp {work}/lm "
    "--best 1",
)
GRAPHS = (
    "graph --tokens {data}/tokens --text {work}/text --order 2 --output {work}/graph",
    "draw {work}/graph {work}/graph.{picture} --tokens {data}/tokens",
)
MODELS = (
    "import-checkpoint auto_avsr {work}/checkpoint.pth {work}/imported --tokens {work}/units.txt",
    "export --model {audio} --output {work}/onnx",
)
TOOLS = ("doctor", "completion bash")
ALL = (DATA, SYNTHETIC, TRAINING, RECOGNITION, STREAM, LANGUAGE, GRAPHS, MODELS, TOOLS)


def test_all_commands_are_here():
    lines = [line for lines in ALL for line in lines]
    assert {
        name for name in COMMANDS if any(f"{line} ".startswith(f"{name} ") for line in lines)
    } == {*COMMANDS}


@pytest.fixture(scope="module")
def names(tiny_corpus, tiny_model, tiny_model_dir, tmp_path_factory) -> dict:
    """What stands in the lines for the files that they begin with."""
    work = tmp_path_factory.mktemp("work")
    table = work / "table"
    table.mkdir()
    rows = ["file\tspeaker\tsplit\ttext"]
    for i, split in enumerate(("train", "dev")):
        sound = 0.1 * np.random.default_rng(i).standard_normal(8000)
        soundfile.write(table / f"{i}.wav", sound, 16000)
        rows.append(f"{i}.wav\ts{i}\t{split}\tab c")
    (table / "manifest.tsv").write_text("\n".join(rows) + "\n")
    (work / "units.txt").write_text("<unk>\na\nb\n")
    (work / "text").write_text("\n".join(["ab c", "c ab", "ba", "cab"] * 6) + "\n")
    flip = {"class_path": "speechattn.data.augment.HorizontalFlip"}
    config = {
        "model": tiny_model("audio"),
        "data": {"video_transforms": [flip], "num_workers": 0},
        "training": {"max_epochs": 1},
        "search": {"class_path": "JointSearch", "init_args": {"beam_size": 2}},
    }
    (work / "c.yaml").write_text(yaml.safe_dump(config))
    lm = {"width": 16, "attention_heads": 2, "linear_units": 16, "num_blocks": 1}
    sections = {"lm": lm, "training": {"max_epochs": 1}}
    (work / "lm.yaml").write_text(yaml.safe_dump(sections))
    return {
        "work": work,
        "data": tiny_corpus.folder,
        "audio": tiny_model_dir("audio"),
        "video": tiny_model_dir("video"),
        "sound": tiny_corpus.folder / "s0_u0.flac",
        "picture": "dot",
    }


def run(lines, names) -> None:
    for line in lines:
        assert main(line.format(**names).split()) == 0, line


def test_data(names):
    run(DATA, names)
    assert (names["work"] / "sheet.png").is_file()
    assert (names["work"] / "listed_tokens" / "tokens.txt").is_file()


def test_synthetic_corpora(names):
    pytest.importorskip("espeakng_loader", reason="pip install '.[synth]'")
    run(SYNTHETIC, names)
    assert (names["work"] / "grid_crops" / "contact_sheet.png").is_file()


def test_training(names):
    run(TRAINING, names)
    assert (names["work"] / "exp" / "model" / "model.safetensors").is_file()
    weights = yaml.safe_load((names["work"] / "late" / "config.yaml").read_text())["ensemble"]
    assert weights["weights"] == {"audio": 0.75, "video": 0.25}


def test_recognition(names, capsys):
    if not (names["work"] / "aligned").exists():
        run(DATA[3:4], names)
    run(RECOGNITION[:-2], names)
    capsys.readouterr()
    run(RECOGNITION[-2:], names)
    out = capsys.readouterr().out
    assert "frequency" in out  # `fuse` says what it chose
    assert (names["work"] / "report.html").is_file()


def test_stream(names, tiny_model, tiny_corpus, capsys):
    from speechattn.data.tokenizers import Tokenizer
    from speechattn.model.directory import build_model, save_model_dir

    section = tiny_model("audio")
    section["audio"]["encoder"]["init_args"].update(chunk_size=4, causal=True)
    section["audio"]["frontend"]["init_args"]["normalise"] = "none"
    tokenizer = Tokenizer.load(tiny_corpus.folder / "tokens")
    model = build_model(section, tokenizer.vocab_size)
    nn.init.normal_(model.ctc.weight, std=2.0)
    folder = names["work"] / "streaming"
    save_model_dir(folder, {"model": section}, model.state_dict(), tokenizer, {})
    run(STREAM, {**names, "streaming": folder})


def test_language_models(names):
    run(LANGUAGE, names)
    assert (names["work"] / "lm.arpa").read_text().startswith("\\data\\")
    assert (names["work"] / "lm" / "lm" / "model.safetensors").is_file()


def test_graphs(names):
    pytest.importorskip("kaldifst", reason="pip install '.[fst]'")
    run(GRAPHS, names)


def test_models(names):
    pytest.importorskip("onnxscript", reason="pip install '.[export]'")
    torch.save(random_state(shapes("audio", 5)), names["work"] / "checkpoint.pth")
    run(MODELS, names)
    assert (names["work"] / "imported" / "model.safetensors").is_file()


def test_tools(names, capsys):
    run(TOOLS[:1], names)
    assert '"torch"' in capsys.readouterr().out
    if find_spec("shtab"):
        run(TOOLS[1:], names)
        assert "_shtab_speechattn" in capsys.readouterr().out
