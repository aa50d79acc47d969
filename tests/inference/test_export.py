"""ONNX graphs against the modules they were made of, by onnxruntime; ragged batches throughout."""

import pytest
import torch
from torch import nn

from speechattn import SpeechModel, Transcriber
from speechattn.data.tokenizer import Tokenizer
from speechattn.decoding import DecodeOptions, decode
from speechattn.errors import ConfigError
from speechattn.inference.export import OnnxModel, export_onnx
from speechattn.model_dir import load_model

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(tiny_model_dir, tmp_path_factory):
    """A function of modality that gives a model, its folder, and its graphs."""
    made = {}

    def make(name: str):
        if name not in made:
            folder = tiny_model_dir(name)
            model = SpeechModel.from_pretrained(folder)
            output = tmp_path_factory.mktemp(name)
            files = export_onnx(model, output)
            assert [f.name for f in files] == [
                "encoder.onnx", "decoder_start.onnx", "decoder_step.onnx",
            ]  # fmt: skip
            made[name] = model, folder, OnnxModel(model, output)
        return made[name]

    return make


def inputs(batch: int) -> dict[str, torch.Tensor]:
    """Of other sizes than those the graphs were traced with."""
    torch.manual_seed(batch)
    return {
        "audio": 0.1 * torch.randn(batch, 19200),
        "audio_lengths": torch.tensor([19200, 9600, 12800, 16000])[:batch],
        "video": torch.randint(0, 256, (batch, 30, 1, 16, 16)),
        "video_lengths": torch.tensor([30, 15, 20, 25])[:batch],
    }


@pytest.mark.parametrize("name", ["audio", pytest.param("av", marks=pytest.mark.slow)])
@torch.inference_mode()
def test_graphs_equal_modules(exported, name):
    model, _, graphs = exported(name)
    for batch in (1, 4):
        given = inputs(batch)
        (expected,), (found,) = model.evidence(**given), graphs.evidence(**given)
        assert torch.equal(found.lengths, expected.lengths)
        torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-3, atol=1e-3)
        for options in (
            DecodeOptions(method="ctc_greedy"),
            DecodeOptions(beam_size=5, nbest=3, max_length_ratio=0.8),
            DecodeOptions(method="attention", beam_size=1, max_length_ratio=0.8),
        ):
            for a, b in zip(decode([expected], options), decode([found], options), strict=True):
                assert [h.tokens for h in a] == [h.tokens for h in b]
                assert [h.score for h in a] == pytest.approx([h.score for h in b], abs=1e-2)


def test_a_transcriber_of_graphs(exported, tiny_corpus):
    _, folder, graphs = exported("audio")
    files = sorted(tiny_corpus.folder.glob("s*.flac"))[:3]
    expected = Transcriber.from_pretrained(folder)
    found = Transcriber(graphs, Tokenizer.load(folder), expected.decode_options)
    texts = [t.text for t in expected.transcribe(files)]
    assert [t.text for t in found.transcribe(files)] == texts
    assert any(texts)


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
