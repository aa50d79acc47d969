"""`prepare` on models, ensembles and exported graphs: what it replaces, and that numbers stay."""

import copy

import pytest
import torch
from torch import nn

from speechattn.deploy import prepare
from speechattn.deploy.exported import OnnxModel
from speechattn.deploy.packing import PACKS, PackedLinear
from speechattn.deploy.quantization import Bf16Linear, Int8Linear
from speechattn.deploy.replacement import replace_modules
from speechattn.deploy.visual_frontend import FoldedResNet
from speechattn.errors import ConfigError
from speechattn.frontends import ResNet3D
from speechattn.model.directory import load_model


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


class Graphs(OnnxModel):
    """An exported model without its graphs."""

    def __init__(self):
        nn.Module.__init__(self)
        self.frontend = ResNet3D(4, (4, 4, 6, 8), (1, 1, 1, 1))


@pytest.mark.parametrize(("name", "frontends"), [("audio", 0), ("video", 1), ("late", 1)])
@torch.inference_mode()
def test_numbers_stay(tiny_model_dir, name, frontends):
    torch.manual_seed(0)
    inputs = {
        "audio": 0.1 * torch.randn(2, 16000),
        "audio_lengths": torch.tensor([16000, 9600]),
        "video": torch.randint(0, 256, (2, 25, 1, 16, 16)),
        "video_lengths": torch.tensor([25, 15]),
    }
    model = load_model(tiny_model_dir(name)).train()
    ready = prepare(copy.deepcopy(model))
    assert not ready.training and isinstance(ready, type(model))
    assert count(ready, FoldedResNet) == frontends and count(ready, ResNet3D) == 0
    for e, f in zip(model.eval().outputs(**inputs), ready.outputs(**inputs), strict=True):
        torch.testing.assert_close(f.log_probs, e.log_probs, atol=1e-4, rtol=1e-4)
    kinds = [type(module) for module in ready.modules()]
    assert [type(module) for module in prepare(ready).modules()] == kinds


@pytest.mark.parametrize(("scheme", "kind"), [("int8", Int8Linear), ("bf16", Bf16Linear)])
def test_large_layers_are_quantized_and_the_others_packed(scheme, kind):
    model = nn.ModuleDict({"a": nn.Linear(512, 512), "b": nn.Sequential(nn.Linear(64, 64))})
    ready = prepare(model, quantize=scheme)
    assert ready is model and isinstance(ready["a"], kind)
    assert isinstance(ready["b"][0], PackedLinear if PACKS else nn.Linear)


def test_precision_reaches_every_visual_frontend():
    frontend = ResNet3D(4, (4, 4, 6, 8), (1, 1, 1, 1))
    for model in (nn.ModuleList([nn.ModuleList([frontend])]), Graphs()):
        ready = prepare(model, "bf16")
        (folded,) = (m for m in ready.modules() if isinstance(m, FoldedResNet))
        assert folded.dtype == torch.bfloat16


@pytest.mark.parametrize("alone", [True, False])
def test_exported_graphs_run_on_a_cpu_in_float32(alone):
    model = Graphs() if alone else nn.ModuleDict({"a": Graphs()})
    with pytest.raises(ConfigError, match="device cuda: exported graphs run on the CPU"):
        prepare(model, device="cuda")
    with pytest.raises(ConfigError, match="quantize int8: exported graphs stay in float32"):
        prepare(model, quantize="int8")


def test_other_devices_only_get_the_model():
    model = nn.ModuleList([nn.Linear(512, 512), ResNet3D(4, (4, 4, 6, 8), (1, 1, 1, 1))])
    with pytest.raises(ConfigError, match="quantize int8: is for a CPU"):
        prepare(model, quantize="int8", device="meta")
    ready = prepare(model, device="meta")
    assert ready is model and type(ready[0]) is nn.Linear and type(ready[1]) is ResNet3D
    assert ready[0].weight.is_meta and not ready.training


def test_unknown_values():
    model = nn.ModuleList([ResNet3D(4, (4, 4, 6, 8), (1, 1, 1, 1))])
    with pytest.raises(ConfigError, match="precision: one of fp32, mixed, bf16, not 'int4'"):
        prepare(model, "int4")
    with pytest.raises(ConfigError, match="quantize: one of int8, bf16, not 'int4'"):
        prepare(model, quantize="int4")


def test_replaced_modules_are_counted():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    kept = model[0]
    changed = replace_modules(model, nn.Linear, lambda x: x if x is kept else nn.Identity())
    assert changed == 1 and model[0] is kept and isinstance(model[1][0], nn.Identity)
