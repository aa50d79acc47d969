"""Folded visual frontends: the same numbers, with and without fused convolutions."""

import copy

import pytest
import torch
from torch import nn

from speechattn.deploy import visual_frontend
from speechattn.deploy.visual_frontend import FoldedConv, FoldedResNet, fold_frontend
from speechattn.errors import ConfigError
from speechattn.frontends import EnhancedResNet3D, LogMelFbank, ResNet3D

SIZES = (37, 0, 23, 1)
ENHANCED = {
    "attention": ["se", "eca", "cbam", "triplet"],
    "temporal": ["none", "shift", "conv", "shift"],
    "stem": "deep",
    "shortcut": "pooled",
    "stochastic_depth": 0.5,
}
MODELS = {
    "plain": (ResNet3D, {}),
    "clip": (ResNet3D, {"normalise": "clip", "pool_input": 2, "output_norm": True}),
    "bottleneck": (ResNet3D, {"block": "bottleneck"}),
    "enhanced": (EnhancedResNet3D, ENHANCED),
    "split": (EnhancedResNet3D, {"attention": ["split"] * 4, "block": "bottleneck"}),
}


def make(name: str, activation: str = "swish") -> nn.Module:
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    model = kind(8, (8, 8, 16, 16), (1, 2, 1, 1), activation, **settings)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.2, 0.5)
    return model.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (len(SIZES), max(SIZES) + 2, 1, 40, 40)  # two frames more than the longest has
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return x, torch.tensor(SIZES)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("activation", ["relu", "prelu", "swish"])
@pytest.mark.parametrize("name", MODELS)
def test_folded_equals_unfolded(name, activation, fused, monkeypatch):
    if fused and not visual_frontend.FUSED:
        pytest.skip("this PyTorch has no fused convolutions")
    monkeypatch.setattr(visual_frontend, "FUSED", fused)
    model = make(name, activation)
    before = copy.deepcopy(model.state_dict())
    x, lengths = batch()
    with torch.inference_mode():
        expected, _ = model(x, lengths)
    ready = fold_frontend(model)
    for _ in range(2):  # nothing is overwritten that a second pass needs
        found, frames = ready(x, lengths)
        assert frames.tolist() == list(SIZES)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert ready.output_size == model.output_size
    torch.testing.assert_close(model.state_dict(), before, atol=0, rtol=0)


@pytest.mark.parametrize("precision", ["mixed", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_bf16_is_near_and_padding_changes_nothing(name, precision):
    model = make(name)
    x, lengths = batch()
    ready = fold_frontend(model, precision)
    with torch.inference_mode():
        expected, _ = model(x, lengths)
    found, _ = ready(x, lengths)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    for i, n in enumerate(SIZES):
        assert not found[i, n:].any()
        if n:
            alone, _ = ready(x[i : i + 1, :n], torch.tensor([n]))
            # A sum in another order may round to the next of bfloat16's numbers.
            torch.testing.assert_close(found[i, :n], alone[0], atol=0.02, rtol=0.02)


def test_no_norm_is_left_in_a_plain_network():
    ready = fold_frontend(make("plain"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ready.modules())
    # the stem, five blocks of two, three shortcuts
    assert sum(isinstance(module, FoldedConv) for module in ready.modules()) == 1 + 10 + 3


def test_wide_stages_by_winograd_are_the_same():
    torch.manual_seed(0)
    model = ResNet3D(8, (8, 8, 16, 256), (1, 1, 1, 2)).eval()
    ready = fold_frontend(model)
    convs = [m for m in ready.modules() if isinstance(m, FoldedConv)]
    # Not the first of the last stage, which has a stride and 16 channels.
    assert sum(conv.winograd is not None for conv in convs) == 3
    x, lengths = batch()
    with torch.inference_mode():
        expected, _ = model(x, lengths)
    torch.testing.assert_close(ready(x, lengths)[0], expected, atol=1e-5, rtol=1e-5)


def test_mixed_keeps_the_later_blocks_in_float32():
    ready = fold_frontend(ResNet3D(8, (8, 8, 8, 8)), "mixed")
    found = [block.branch[0].weight.dtype for block in ready.trunk]
    assert found == [torch.bfloat16] * 2 + [torch.float32] * 6
    assert ready.stem[0].weight.dtype == torch.bfloat16


def test_it_can_be_copied_and_stays_in_evaluation():
    x, lengths = batch()
    ready = fold_frontend(make("plain"))
    expected, _ = ready(x, lengths)
    again = copy.deepcopy(ready).train()
    assert not again.training
    torch.testing.assert_close(again(x, lengths)[0], expected)
    assert not expected.requires_grad


def test_other_frontends_come_back_as_they_are():
    fbank = LogMelFbank()
    assert fold_frontend(fbank, "bf16") is fbank
    assert isinstance(fold_frontend(make("plain")), FoldedResNet)


def test_other_precisions_are_refused():
    with pytest.raises(ConfigError, match="int4"):
        fold_frontend(make("plain"), "int4")
