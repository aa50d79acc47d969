"""EnhancedResNet3D: equal to ResNet3D with its switches off, ragged batches with them on."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from speechattn.errors import ConfigError
from speechattn.frontends import EnhancedResNet3D, ResNet3D
from speechattn.frontends.temporal import Clips

SIZES = (1, 9, 2, 0, 5)
SWITCHES = {
    "se_shift": {"attention": ["se"] * 4, "temporal": ["shift"] * 4},
    "eca_conv": {"attention": ["eca"] * 4, "temporal": ["conv"] * 4},
    "cbam_deep": {"attention": ["cbam"] * 4, "stem": "deep"},
    "triplet_pooled": {"attention": ["triplet"] * 4, "shortcut": "pooled"},
    "split_shift": {"attention": ["split"] * 4, "temporal": ["shift"] * 4},
    "mixed": {
        "attention": ["none", "se", "split", "cbam"],
        "temporal": ["none", "conv", "shift", "none"],
        "stem": "deep",
        "shortcut": "pooled",
        "stochastic_depth": 0.3,
    },
}
CASES = [(name, block) for name in SWITCHES for block in ("basic", "bottleneck")]


def small(kind=EnhancedResNet3D, **switches) -> nn.Module:
    torch.manual_seed(0)
    model = kind(4, (4, 6, 8, 10), (1, 1, 2, 1), "swish", **switches)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def ragged(side: int = 24) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    items = [
        torch.randint(0, 256, (n, 1, side, side), dtype=torch.uint8, generator=generator)
        for n in SIZES
    ]
    batch = pad_sequence(items, batch_first=True, padding_value=200)  # garbage beyond the end
    return items, batch, torch.tensor(SIZES)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("training", [False, True])
def test_with_every_switch_off_it_is_resnet3d(block, training):
    plain, enhanced = small(ResNet3D, block=block), small(block=block)
    enhanced.load_state_dict(plain.state_dict())
    _, batch, lengths = ragged()
    found = enhanced.train(training)(batch, lengths)[0]
    expected = plain.train(training)(batch, lengths)[0]
    assert torch.equal(found, expected)
    weights = torch.linspace(-1, 1, found.shape[-1])
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    grads = {n: p.grad for n, p in plain.named_parameters()}
    torch.testing.assert_close({n: p.grad for n, p in enhanced.named_parameters()}, grads)
    torch.testing.assert_close(dict(enhanced.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.parametrize(("name", "block"), CASES)
def test_padding_and_neighbours_change_nothing(name, block):
    model = small(block=block, **SWITCHES[name])
    items, batch, lengths = ragged()
    with torch.inference_mode():
        found, frames = model(batch, lengths)
        assert frames.tolist() == list(SIZES)
        for row, clip in zip(found, items, strict=True):
            n = len(clip)
            assert not row[n:].any()
            if n:
                alone, _ = model(clip[None], torch.tensor([n]))
                torch.testing.assert_close(row[:n], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "block"), CASES)
def test_training_does_not_see_the_padding(name, block):
    results = []
    for extra in (0, 4):
        model = small(block=block, **SWITCHES[name]).train()
        _, batch, lengths = ragged()
        batch = nn.functional.pad(batch, (0, 0) * 3 + (0, extra), value=77)
        torch.manual_seed(3)  # stochastic depth draws by clip, not by frame
        found, _ = model(batch, lengths)
        assert found.shape[1] == 9 + extra
        (found * torch.linspace(-1, 1, found.shape[-1])).sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
        results.append((found[:, :9], grads, dict(model.named_buffers())))
    torch.testing.assert_close(results[0], results[1], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("temporal", "reach"), [("none", 2), ("shift", 7), ("conv", 12)])
def test_how_far_a_frame_sees(temporal, reach):
    """The stem sees 2 frames; each of 5 blocks adds 1 by a shift, 2 by two convolutions."""
    model = small(temporal=[temporal] * 4)
    clip = torch.randint(0, 256, (1, 31, 1, 24, 24)).float()
    changed = clip.clone()
    changed[:, 15] = 255 - changed[:, 15]
    length = torch.tensor([31])
    with torch.inference_mode():
        difference = (model(clip, length)[0] - model(changed, length)[0])[0]
    seen = difference.abs().amax(-1) > 0
    assert seen[15]
    assert not seen[: 15 - reach].any()
    assert not seen[15 + reach + 1 :].any()
    if temporal != "none":
        assert seen[12:19].all()  # beyond the stem's two


def test_stochastic_depth_is_linear_by_block_and_whole_clips():
    model = small(stochastic_depth=0.5)
    assert [block.drop for block in model.trunk] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    last = model.trunk[2]  # the first of stage 3 changes shape; it is the third block
    last.train()
    for norm in (last.norm1, last.norm2, last.shortcut[1]):
        norm.eval()
    count = 4000
    x = torch.randn(2 * count, 6, 2, 2)
    clips = Clips.of(torch.full((count,), 2))
    with torch.no_grad():
        found = last(x, clips)
        around = last.shortcut(x)
        branch = last.norm2(last.conv2(last.act1(last.norm1(last.conv1(x)))))
        skipped = last.act2(around.clone())
        kept = last.act2(around + branch / 0.7)
    is_skipped = (found - skipped).abs().flatten(1).amax(1) < 1e-5
    is_kept = (found - kept).abs().flatten(1).amax(1) < 1e-5
    assert torch.equal(is_skipped, ~is_kept)
    assert torch.equal(is_skipped[::2], is_skipped[1::2])  # both frames of a clip
    assert float(is_skipped.float().mean()) == pytest.approx(0.3, abs=0.03)


def test_pooled_shortcut_and_deep_stem_are_resnet_d():
    model = EnhancedResNet3D(stem="deep", shortcut="pooled", activation="relu")
    shapes = [tuple(m.weight.shape) for m in model.stem if hasattr(m, "kernel_size")]
    assert shapes == [(32, 1, 5, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3)]
    kinds = [type(block.shortcut).__name__ for block in model.trunk]
    assert kinds == ["Identity", "Identity", *["Sequential", "Identity"] * 3]
    pool, conv, _ = model.trunk[2].shortcut
    assert conv.stride == (1, 1)
    x = torch.arange(9.0).view(1, 1, 3, 3)
    expected = torch.tensor([[(0 + 1 + 3 + 4) / 4, (2 + 5) / 2], [(6 + 7) / 2, 8.0]])
    torch.testing.assert_close(pool(x)[0, 0], expected)


@pytest.mark.parametrize("side", [24, 45, 96])
def test_other_crop_sizes(side):
    model = small(**SWITCHES["mixed"])
    found, _ = model(torch.zeros(1, 2, 1, side, side), torch.tensor([2]))
    assert found.shape == (1, 2, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": ["se"]}, "attention has 1 entries for 4 stages"),
        ({"stochastic_depth": 1.0}, "stochastic_depth"),
        (
            {"block": "bottleneck", "attention": ["split"] * 4, "temporal": ["conv"] * 4},
            "not both in one stage",
        ),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        EnhancedResNet3D(**settings)
