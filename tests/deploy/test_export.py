"""ONNX graphs against the modules they were made of, by onnxruntime; ragged batches throughout."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from speechattn import Transcriber
from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding import CtcGreedySearch, CtcRescoringSearch, JointSearch
from speechattn.deploy.export import EncoderGraph, export_dir, export_onnx, write
from speechattn.deploy.exported import OnnxModel, is_exported, load_exported, open_session
from speechattn.errors import ConfigError
from speechattn.model.directory import build_model, load_model, save_model_dir
from speechattn.transcribe.manifests import decode_cuts

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(tiny_model_dir, other_dir, tmp_path_factory):
    """A function of a name that gives a model, its folder, its graphs, and the folder of these."""
    made = {}

    def make(name: str):
        if name not in made:
            folder = other_dir if name == "other" else tiny_model_dir(name)
            output = tmp_path_factory.mktemp(name)
            files = export_dir(folder, output)
            assert [f.name for f in files] == [
                "encoder.onnx", "decoder_start.onnx", "decoder_step.onnx",
            ] * (2 if name == "late" else 1)  # fmt: skip
            made[name] = load_model(folder), folder, load_exported(output), output
        return made[name]

    return make


@pytest.fixture(scope="module")
def other_dir(tiny_model, tiny_model_dir, tmp_path_factory):
    """The directory of a model with an E-Branchformer and a decoder of both directions."""
    folder, other = tmp_path_factory.mktemp("other") / "model", tiny_model_dir("audio")
    search = {"class_path": "JointSearch", "init_args": {"max_length_ratio": 0.5}}
    config = {"model": tiny_model("audio", "e_branchformer"), "search": search}
    config["model"]["decoder"]["class_path"] = "speechattn.decoders.BidirectionalDecoder"
    config["model"]["decoder"]["init_args"]["reverse_blocks"] = 1
    tokenizer = Tokenizer.load(other)
    torch.manual_seed(2)
    model = build_model(config["model"], tokenizer.vocab_size)
    save_model_dir(folder, config, model.state_dict(), tokenizer, {})
    return folder


def inputs(batch: int) -> dict[str, torch.Tensor]:
    """Of other sizes than those the graphs were traced with."""
    torch.manual_seed(batch)
    return {
        "audio": 0.1 * torch.randn(batch, 19200),
        "audio_lengths": torch.tensor([19200, 9600, 12800, 16000])[:batch],
        "video": torch.randint(0, 256, (batch, 30, 1, 16, 16)),
        "video_lengths": torch.tensor([30, 15, 20, 25])[:batch],
    }


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("av", "late", "other")]


@pytest.mark.parametrize("name", ["audio", *SLOW])
@torch.inference_mode()
def test_graphs_equal_modules(exported, name):
    model, _, graphs, _ = exported(name)
    for batch in (1, 4):
        given = inputs(batch)
        expected, found = model.outputs(**given), graphs.outputs(**given)
        for e, f in zip(expected, found, strict=True):
            assert torch.equal(f.lengths, e.lengths)
            assert (f.name, f.weight) == (e.name, e.weight)
            torch.testing.assert_close(f.hidden, e.hidden, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(f.log_probs, e.log_probs, rtol=1e-3, atol=1e-3)
        for search in (
            CtcGreedySearch(),
            JointSearch(beam_size=5, nbest=3, max_length_ratio=0.8),
            JointSearch(ctc_weight=0.0, beam_size=1, max_length_ratio=0.8),
        ):
            if search.single_model and len(expected) > 1:
                continue
            for a, b in zip(search.search(expected), search.search(found), strict=True):
                assert [h.tokens for h in a] == [h.tokens for h in b]
                assert [h.score for h in a] == pytest.approx([h.score for h in b], abs=1e-2)


@pytest.mark.parametrize("name", ["audio", *SLOW])
def test_a_transcriber_of_an_exported_folder(exported, tiny_corpus, tmp_path, name):
    _, folder, _, output = exported(name)
    assert is_exported(output) and not is_exported(folder)
    expected, found = (Transcriber.from_pretrained(path) for path in (folder, output))
    assert found.recogniser.search == expected.recogniser.search
    assert repr(found) == repr(expected)
    crops = tiny_corpus.folder / "crops" if "video" in found.recogniser.model.modalities else None
    cuts = tiny_corpus.folder / "cuts_dev.jsonl.gz"
    texts = [
        decode_cuts(one.recogniser, cuts, tmp_path / str(i), crops=crops, details=1).read_text()
        for i, one in enumerate((expected, found))
    ]
    assert texts[0] == texts[1]
    assert min(found.recogniser.times.seconds[part] for part in ("encoder", "search")) > 0
    if name == "audio":
        files = sorted(tiny_corpus.folder.glob("s*.flac"))[:3]
        spoken = [t.text for t in expected.transcribe(files)]
        assert any(spoken)
        assert [t.text for t in found.transcribe(files)] == spoken
        assert found.transcribe(files[0]).text == spoken[0]


def test_how_graphs_cannot_be_run(exported):
    _, _, _, output = exported("audio")
    for given, message in (
        ({"device": "cuda"}, "run on the CPU"),
        ({"quantize": "int8"}, "stay in float32"),
        ({"search": CtcRescoringSearch()}, "scores whole hypotheses"),
        ({"search": JointSearch(reverse_weight=0.3)}, "reverse_weight"),
        ({"search": JointSearch(internal_lm_weight=0.3)}, "internal_lm_weight"),
    ):
        with pytest.raises(ConfigError, match=message):
            Transcriber.from_pretrained(output, **given)


def test_graphs_run_without_the_packages_that_write_them(exported):
    _, _, _, output = exported("audio")
    code = (
        "import sys, torch\n"
        "sys.modules.update(onnx=None, onnxscript=None)\n"
        "from speechattn.deploy import prepare\n"
        "from speechattn.deploy.exported import load_exported\n"
        f"model = prepare(load_exported({str(output)!r}))\n"
        "(e,) = model.outputs(torch.zeros(1, 16000), torch.tensor([16000]))\n"
        "model.decoder.init_state(e.hidden, e.lengths)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_missing_packages(monkeypatch):
    path = Path("encoder.onnx")
    for package, extra, run in (
        ("onnxscript", "export", lambda: write(None, {}, [], path)),
        ("onnxruntime", "onnx", lambda: open_session(path)),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            ConfigError, match=rf"{package} is not.*\[{extra}\].*clone.*\[{extra}\]"
        ):
            run()


def test_a_graph_shares_the_weights_of_its_model(tiny_model_dir):
    model = load_model(tiny_model_dir("av"))
    kinds = [type(module) for module in model.modules()]
    graph = EncoderGraph(model)
    assert [type(module) for module in model.modules()] == kinds
    own = {id(p) for p in model.parameters()}
    assert {id(p) for p in graph.parameters()} < own


def test_folders_that_are_not_whole(exported, tiny_model_dir, tmp_path):
    _, folder, _, output = exported("audio")
    with pytest.raises(ConfigError, match="is a model directory"):
        export_dir(folder, tiny_model_dir("video"))
    for missing in ("decoder_step.onnx", "tokens.txt"):
        copy = tmp_path / missing
        shutil.copytree(output, copy)
        (copy / missing).unlink()
        with pytest.raises(ConfigError, match=missing):
            Transcriber.from_pretrained(copy)
    # An export that was interrupted.
    (tmp_path / "tokens.txt" / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        Transcriber.from_pretrained(tmp_path / "tokens.txt")


def test_what_cannot_be_exported(tiny_model_dir, tmp_path):
    with pytest.raises(ConfigError, match="one model at a time"):
        export_onnx(load_model(tiny_model_dir("late")), tmp_path)
    model = load_model(tiny_model_dir("audio"))
    with pytest.raises(ConfigError, match="encoder.onnx is missing"):
        OnnxModel(model, tmp_path)
    model.decoder = nn.Identity()
    with pytest.raises(ConfigError, match="a Identity cannot be exported"):
        export_onnx(model, tmp_path)
    with pytest.raises(ConfigError, match="float32"):
        export_onnx(load_model(tiny_model_dir("audio")).double(), tmp_path)
    assert list(tmp_path.iterdir()) == []
