"""ResNet3D: shapes, ragged batches, and the published network's size."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from speechattn.frontends import ResNet3D

SIZES = (1, 9, 2, 0, 5)


def small(pool_input: int = 1, activation: str = "swish", normalise: str = "fixed") -> ResNet3D:
    torch.manual_seed(0)
    model = ResNet3D(
        4,
        (4, 6, 8, 10),
        (1, 1, 1, 1),
        activation,
        normalise=normalise,
        output_norm=normalise == "clip",
        pool_input=pool_input,
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean)
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


@pytest.mark.parametrize("pool_input", [1, 2])
@pytest.mark.parametrize("activation", ["relu", "prelu", "swish"])
@pytest.mark.parametrize("normalise", ["fixed", "clip"])
def test_padding_changes_nothing(pool_input, activation, normalise):
    model = small(pool_input, activation, normalise)
    items, batch, lengths = ragged()
    with torch.inference_mode():
        found, frames = model(batch, lengths)
        assert frames.tolist() == list(SIZES)
        assert found.shape == (5, 9, 10)
        for row, clip in zip(found, items, strict=True):
            n = len(clip)
            assert not row[n:].any()
            if n:
                alone, _ = model(clip[None], torch.tensor([n]))
                torch.testing.assert_close(row[:n], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool_input", [1, 2])
def test_training_statistics_do_not_see_the_padding(pool_input):
    results = []
    for extra in (0, 4):
        model = small(pool_input).train()
        _, batch, lengths = ragged()
        batch = nn.functional.pad(batch, (0, 0) * 3 + (0, extra), value=77)
        found, _ = model(batch, lengths)
        (found * torch.linspace(-1, 1, 10)).sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        results.append((found[:, :9], grads, dict(model.named_buffers())))
    torch.testing.assert_close(results[0], results[1], atol=2e-4, rtol=1e-3)


def test_bytes_and_floats_are_the_same_pictures():
    model = small()
    _, batch, lengths = ragged()
    with torch.inference_mode():
        torch.testing.assert_close(model(batch, lengths)[0], model(batch.float(), lengths)[0])


def test_a_frame_sees_two_before_and_two_after():
    model = small()
    clip = torch.randint(0, 256, (1, 9, 1, 24, 24)).float()
    changed = clip.clone()
    changed[:, 4] = 255 - changed[:, 4]
    with torch.inference_mode():
        difference = (model(clip, torch.tensor([9]))[0] - model(changed, torch.tensor([9]))[0])[0]
    assert [bool(row.abs().max() > 1e-6) for row in difference] == [2 <= t <= 6 for t in range(9)]


@pytest.mark.parametrize(
    ("blocks", "block", "published", "size"),
    [
        ((2, 2, 2, 2), "basic", 11_689_512 - 513_000, 512),
        ((3, 4, 6, 3), "basic", 21_797_672 - 513_000, 512),
        ((3, 4, 6, 3), "bottleneck", 25_557_032 - 2_049_000, 2048),
    ],
    ids=["resnet18", "resnet34", "resnet50"],
)
def test_trunks_have_the_published_size(blocks, block, published, size):
    """torchvision's counts less classifier and stem, and our stem."""
    with torch.device("meta"):
        model = ResNet3D(blocks=blocks, block=block, activation="relu")
    trunk = published - (64 * 3 * 49 + 128)  # less its conv1 and bn1
    stem = 64 * 5 * 7 * 7 + 128
    assert sum(p.numel() for p in model.parameters()) == trunk + stem
    assert model.output_size == size


def test_bottlenecks_of_a_clip():
    torch.manual_seed(0)
    model = ResNet3D(4, (4, 6, 8, 10), (1, 1, 1, 1), block="bottleneck").eval()
    assert model.trunk[1].conv2.stride == (2, 2)  # in the 3x3, not the first 1x1
    items, batch, lengths = ragged()
    with torch.inference_mode():
        found, _ = model(batch, lengths)
        alone, _ = model(items[1][None], lengths[1:2])
    assert found.shape == (5, 9, 40)
    torch.testing.assert_close(found[1], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_stem_is_the_3d_convolution(channels):
    torch.manual_seed(0)
    model = ResNet3D(4, (4, 6, 8, 10), (1, 1, 1, 1), image_channels=channels, mean=0, std=1 / 255)
    clips = torch.randint(-9, 9, (2, 6, channels, 20, 22)).float()
    lengths = torch.tensor([6, 4])
    seen = []
    model.stem_norm.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    model(clips, lengths)[0].sum().backward()
    found = seen[0]
    for clip, part in zip(clips, found.split([6, 4]), strict=True):
        expected = model.stem[0](clip[: len(part)].transpose(0, 1)[None])[0].transpose(0, 1)
        torch.testing.assert_close(part, expected, atol=1e-4, rtol=1e-4)
    assert model.stem[0].weight.grad.abs().min() > 0


def test_nothing_is_gathered_where_nothing_is_padded(monkeypatch):
    model = small()
    clips = torch.randint(0, 256, (2, 3, 1, 24, 24)).float()
    expected, _ = model(torch.nn.functional.pad(clips, (0, 0) * 3 + (0, 1)), torch.tensor([3, 3]))
    monkeypatch.setattr(torch.Tensor, "__setitem__", None)
    found, _ = model(clips, torch.tensor([3, 3]))
    torch.testing.assert_close(found, expected[:, :3])


@pytest.mark.parametrize(("pool_input", "side", "expected"), [(1, 88, 22), (2, 88, 11), (2, 45, 6)])
def test_picture_sizes(pool_input, side, expected):
    seen = []
    model = small(pool_input)
    model.pool.register_forward_hook(lambda module, args, out: seen.append(out.shape[-2:]))
    found, _ = model(torch.zeros(1, 2, 1, side, side), torch.tensor([2]))
    assert seen == [(expected, expected)]
    assert found.shape == (1, 2, 10)


def test_clip_normalisation_sees_what_moves():
    """A still picture under the clip, or another contrast, changes nothing."""
    model = small(normalise="clip")
    _, batch, lengths = ragged()
    moving = batch.float() / 4
    still = torch.linspace(0, 100, 24 * 24).view(24, 24)
    with torch.inference_mode():
        expected, _ = model(moving, lengths)
        found, _ = model(2.0 * moving + still, lengths)
    # A clip of one frame has nothing that moves; it is the same zeros both times.
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        fixed, _ = small()(2.0 * moving + still, lengths)
        assert not torch.allclose(fixed, small()(moving, lengths)[0], atol=1e-2)
