"""Quantised linear layers: against exact integer arithmetic, and whole models against float32."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from speechattn import Transcriber
from speechattn.decoders import TransformerDecoder
from speechattn.decoding import JointSearch
from speechattn.deploy.packing import PackedLinear, pack
from speechattn.deploy.quantization import Bf16Linear, Int8Linear, quantize
from speechattn.encoders import ConformerEncoder
from speechattn.errors import ConfigError
from speechattn.model.output import ModelOutput

WEIGHTS = {
    "as initialised": lambda w: w,
    "all positive": torch.abs,  # every pair of products has one sign: the worst there is
    "all negative": lambda w: -w.abs(),
    "equal": torch.ones_like,
    "zero": torch.zeros_like,
    "one large": lambda w: w + 50 * (torch.arange(w.size(1)) == 1),
}


def make_linear(columns: int, kind: str = "as initialised", bias: bool = True) -> nn.Linear:
    torch.manual_seed(columns)
    linear = nn.Linear(columns, 13, bias)
    with torch.no_grad():
        linear.weight.copy_(WEIGHTS[kind](linear.weight))
    return linear


def exact(layer: Int8Linear, x: torch.Tensor) -> torch.Tensor:
    """The layer in double precision: the same roundings, and nothing that can overflow."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    step = ((high - low) / 255).clamp(min=1e-38)
    rounded = ((x - low) / step + 0.5).floor().double() * step + low
    return rounded @ layer.weight.double().T + layer.bias.double()


@pytest.mark.parametrize("columns", [1, 7, 64, 768])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_int8_sums_are_exact(kind, columns):
    layer = Int8Linear(make_linear(columns, kind))
    for x in (
        torch.randn(2, 5, columns),
        torch.ones(3, columns),
        torch.cat([torch.zeros(4, 1), torch.ones(4, columns - 1)], 1),  # bytes of 255
        torch.tensor([1.0, 100.0, 1e-3])[:, None] * torch.randn(3, columns),
        1000 + torch.rand(3, columns),
        torch.zeros(2, columns),
    ):
        expected = exact(layer, x)
        size = max(1e-3, float((expected - layer.bias).abs().max()))
        assert float((layer(x) - expected).abs().max()) < 2e-4 * size


@pytest.mark.skipif(sys.platform == "darwin", reason="no AVX2")
def test_int8_sums_are_exact_without_vnni():
    """The same on an older processor: oneDNN reads its limit from the environment, once."""
    code = (
        "import torch\n"
        "from speechattn.deploy.quantization import Int8Linear\n"
        "from tests_quantization import WEIGHTS, exact, make_linear\n"
        "for kind in WEIGHTS:\n"
        "    layer = Int8Linear(make_linear(768, kind))\n"
        "    x = torch.cat([torch.zeros(4, 1), torch.ones(4, 767)], 1)\n"
        "    e = exact(layer, x)\n"
        "    assert (layer(x) - e).abs().max() < 2e-4 * e.abs().max().clamp(min=1e-3), kind\n"
    )
    setup = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('tests_quantization', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['tests_quantization'] = module\n"
        "spec.loader.exec_module(module)\n"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", setup + code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("kind", "limit"), [(Int8Linear, 0.02), (Bf16Linear, 0.005)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_close_to_float32(kind, limit, bias):
    linear = make_linear(768, bias=bias)
    x = torch.randn(4, 9, 768)
    y = linear(x)
    error = (kind(linear)(x) - y).square().mean().sqrt() / y.std()
    assert 0 < error < limit
    assert kind(linear)(x).dtype == torch.float32
    assert kind(linear)(x[:, :0]).shape == (4, 0, 13)


def test_rows_do_not_depend_on_each_other():
    layer = Int8Linear(make_linear(64))
    x = torch.randn(6, 64) * torch.logspace(-3, 3, 6)[:, None]
    together = layer(x)
    for row, alone in zip(together, x, strict=True):
        torch.testing.assert_close(row, layer(alone[None])[0], rtol=1e-6, atol=1e-7)


def test_copies_of_a_used_layer():
    layer = Int8Linear(make_linear(64))
    x = torch.randn(3, 64)
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)


@pytest.fixture(scope="module")
def parts():
    """An encoder and a decoder with weights that do something, and inputs of three lengths."""
    torch.manual_seed(0)
    encoder = ConformerEncoder(
        input_size=32, output_size=64, attention_heads=4, linear_units=128, num_blocks=2,
        conv_kernel=7, subsampling="linear",
    )  # fmt: skip
    decoder = TransformerDecoder(30, 64, width=64, linear_units=128, num_blocks=2)
    with torch.no_grad():
        decoder.output.weight.mul_(4)
    lengths = torch.tensor([40, 17, 28])
    return encoder.eval(), decoder.eval(), torch.randn(3, 40, 32), lengths


@pytest.mark.parametrize(("scheme", "kind"), [("int8", Int8Linear), ("bf16", Bf16Linear)])
@torch.inference_mode()
def test_a_search_with_cheap_layers(parts, scheme, kind):
    encoder, decoder, x, lengths = parts
    options = JointSearch(beam_size=4, max_length_ratio=0.3)
    torch.manual_seed(1)
    log_probs = (3 * torch.randn(3, 40, 30)).log_softmax(-1)

    def search(encoder, decoder, rows):
        hidden, out = encoder(x[rows, : lengths[rows].max()], lengths[rows])
        e = ModelOutput(hidden, out, log_probs[rows, : out.max()], decoder)
        return options.search([e])

    every = torch.arange(3)
    expected = search(encoder, decoder, every)
    cheap = [quantize(copy.deepcopy(m), scheme, smallest=0) for m in (encoder, decoder)]
    found = search(*cheap, every)
    for layers in cheap:
        assert any(isinstance(m, kind) for m in layers.modules())
        assert not any(isinstance(m, nn.Linear) for m in layers.modules())
    for i in range(3):
        assert found[i][0].tokens == expected[i][0].tokens
        assert found[i][0].score == pytest.approx(expected[i][0].score, rel=0.02)
        assert found[i][0].score != expected[i][0].score
        alone = search(*cheap, torch.tensor([i]))[0][0]
        assert alone.tokens == found[i][0].tokens
        assert alone.score == pytest.approx(found[i][0].score, abs=1e-4)


def test_small_layers_and_other_types_stay():
    model = nn.Sequential(
        nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(64, 64).bfloat16(), nn.Conv1d(64, 64, 1)
    ).train()
    kept = list(model)[1:]
    assert quantize(model, "int8", smallest=64 * 64) is model
    assert isinstance(model[0], Int8Linear)
    assert list(model)[1:] == kept
    assert not any(m.training for m in model.modules())
    assert isinstance(quantize(nn.ModuleList([nn.Linear(64, 64)]), "int8")[0], nn.Linear)


@pytest.mark.parametrize(("scheme", "kind"), [("int8", Int8Linear), ("bf16", Bf16Linear)])
@torch.inference_mode()
def test_packed_after_quantizing(parts, scheme, kind):
    encoder, _, x, lengths = parts
    plain = quantize(copy.deepcopy(encoder), scheme, smallest=64 * 128)
    packed = pack(copy.deepcopy(plain))
    kinds = [type(m) for m in packed.modules()]
    assert kinds.count(kind) == 2 * 5
    torch.testing.assert_close(packed(x, lengths)[0], plain(x, lengths)[0], atol=1e-2, rtol=1e-2)
    if PackedLinear in kinds:
        with pytest.raises(ConfigError, match="packed; quantize it first"):
            quantize(packed, scheme)


def test_nothing_to_replace_is_said(caplog):
    quantize(nn.Sequential(nn.Linear(8, 8)), "int8")
    assert "nothing changes" in caplog.text
    caplog.clear()
    quantize(nn.Sequential(nn.Linear(8, 8)), "int8", smallest=0)
    assert not caplog.text


@pytest.mark.parametrize("name", ["audio", "video", "late"])
@torch.inference_mode()
def test_whole_models(tiny_model_dir, name):
    torch.manual_seed(0)
    given = {
        "audio": 0.1 * torch.randn(3, 16000),
        "audio_lengths": torch.tensor([16000, 9600, 12800]),
        "video": torch.randint(0, 256, (3, 25, 1, 16, 16)),
        "video_lengths": torch.tensor([25, 15, 20]),
    }
    recogniser = Transcriber.from_pretrained(tiny_model_dir(name)).recogniser
    expected = recogniser.model.outputs(**given)
    found = quantize(recogniser.model, "int8", smallest=0).outputs(**given)
    for e, f in zip(expected, found, strict=True):
        # The labels' probabilities, which no layer is meant to be far from.
        assert 0 < float((e.log_probs.exp() - f.log_probs.exp()).abs().max()) < 0.05
    assert recogniser.search.search(found)


def test_what_cannot_be_quantized():
    with pytest.raises(ConfigError, match="one of int8, bf16, not 'int4'"):
        quantize(nn.Linear(2, 2), "int4")
    with pytest.raises(ConfigError, match="for a CPU, and the model is on meta"):
        quantize(nn.Sequential(nn.Linear(2, 2, device="meta")), "int8")
