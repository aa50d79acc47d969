"""Attention in residual branches against plain re-implementations, pixel by pixel."""

import math

import pytest
import torch
from torch import nn

from speechattn.frontends.channel_attention import (
    ConvolutionalBlockAttention,
    EfficientChannelAttention,
    SplitConv,
    SqueezeExcite,
    TripletAttention,
    make_attention,
)

C, H, W = 16, 4, 3


@pytest.fixture
def x():
    return torch.randn(3, C, H, W, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def seeded(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value))
    return module.double().requires_grad_(False).eval()


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_squeeze_excite(x):
    module = seeded(SqueezeExcite(C))
    down, up = module.down, module.up
    for picture, found in zip(x, module(x), strict=True):
        means = [float(plane.sum()) / (H * W) for plane in picture]
        hidden = [
            max(sum(w * m for w, m in zip(row, means, strict=True)) + b, 0.0)
            for row, b in zip(down.weight.tolist(), down.bias.tolist(), strict=True)
        ]
        assert len(hidden) == 4  # never fewer, though 16 / 16 is 1
        for c in range(C):
            row = up.weight[c].tolist()
            gate = sigmoid(sum(w * h for w, h in zip(row, hidden, strict=True)) + float(up.bias[c]))
            torch.testing.assert_close(found[c], gate * picture[c])


def test_efficient_channel_attention(x):
    module = seeded(EfficientChannelAttention(C))
    weight = module.conv.weight[0, 0].tolist()
    assert len(weight) == 3
    means, found = x.mean((2, 3)), module(x)
    for n in range(len(x)):
        for c in range(C):
            near = [float(means[n, c + k]) if 0 <= c + k < C else 0.0 for k in (-1, 0, 1)]
            gate = sigmoid(sum(w * m for w, m in zip(weight, near, strict=True)))
            torch.testing.assert_close(found[n, c], gate * x[n, c])


@pytest.mark.parametrize(("channels", "width"), [(64, 3), (128, 5), (256, 5), (512, 5), (2048, 7)])
def test_eca_width_grows_as_published(channels, width):
    """The nearest odd number of (log2(C) + 1) / 2, as the authors' code rounds it."""
    found = EfficientChannelAttention(channels).conv
    assert found.kernel_size == (width,)
    assert found.padding == (width // 2,)


def filter_plane(planes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The 7x7 filter of two planes (2, A, B), offset by offset."""
    _, a, b = planes.shape
    framed = torch.zeros(2, a + 6, b + 6, dtype=planes.dtype)
    framed[:, 3:-3, 3:-3] = planes
    found = torch.zeros(a, b, dtype=planes.dtype)
    for u in range(7):
        for v in range(7):
            found += (weight[:, u, v, None, None] * framed[:, u : u + a, v : v + b]).sum(0)
    return found


def normalised(score: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    score = (score - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    return score * norm.weight + norm.bias


def test_cbam(x):
    module = seeded(ConvolutionalBlockAttention(C))
    found = module(x)
    for n in range(len(x)):
        down, _, up = module.mlp
        total = 0
        for pooled in (x[n].mean((1, 2)), x[n].flatten(1).max(1).values):
            hidden = (down.weight @ pooled + down.bias).clamp(min=0)
            total = total + up.weight @ hidden + up.bias
        y = x[n] * total.sigmoid()[:, None, None]
        planes = torch.stack([y.max(0).values, y.mean(0)])
        gate = normalised(filter_plane(planes, module.spatial.conv.weight[0]), module.spatial.norm)
        torch.testing.assert_close(found[n], y * gate.sigmoid())


def test_triplet(x):
    """Each gate by turning the picture so that its plane lies flat."""
    module = seeded(TripletAttention())
    found = module(x)
    for n in range(len(x)):
        expected = torch.zeros_like(x[n])
        # The axis across the plane first; then the plane; and the way back.
        for gate, there in zip(module.gates, ((1, 0, 2), (2, 0, 1), (0, 1, 2)), strict=True):
            y = x[n].permute(there)
            planes = torch.stack([y.max(0).values, y.mean(0)])
            score = normalised(filter_plane(planes, gate.conv.weight[0]), gate.norm)
            y = y * score.sigmoid()
            back = [there.index(axis) for axis in range(3)]
            expected += y.permute(back) / 3
        torch.testing.assert_close(found[n], expected)


@pytest.mark.parametrize("name", ["cbam", "triplet"])
def test_a_training_step_moves_the_statistics_of_gates_by_a_hundredth(name, x):
    """As in the authors' code, where every norm behind a 7x7 filter has a momentum of 0.01."""
    module = seeded(make_attention(name, C)).train()
    gate = module.spatial if name == "cbam" else module.gates[2]  # over pixels
    scores, before = [], {key: value.clone() for key, value in gate.norm.state_dict().items()}
    gate.conv.register_forward_hook(lambda m, args, y: scores.append(y))
    module(x)
    (score,) = scores
    mean, var = score.mean(), score.var(unbiased=True)
    norm = gate.norm
    torch.testing.assert_close(norm.running_mean[0], 0.99 * before["running_mean"][0] + 0.01 * mean)
    torch.testing.assert_close(norm.running_var[0], 0.99 * before["running_var"][0] + 0.01 * var)


@pytest.mark.parametrize("stride", [1, 2])
def test_split_is_a_mixture_of_two_convolutions(x, stride):
    module = seeded(SplitConv(C, 8, stride))
    conv, norm = module.conv, module.norm
    halves = []
    for part in range(2):
        rows, columns = slice(8 * part, 8 * part + 8), slice(8 * part, 8 * part + 8)
        y = nn.functional.conv2d(x[:, columns], conv.weight[rows], None, stride, 1)
        scale = norm.weight[rows] / (norm.running_var[rows] + norm.eps).sqrt()
        y = (y - norm.running_mean[rows, None, None]) * scale[:, None, None]
        halves.append((y + norm.bias[rows, None, None]).clamp(min=0))
    squeezed = module.down_norm(module.down((halves[0] + halves[1]).mean((2, 3)))).clamp(min=0)
    score = module.up(squeezed)
    first = (score[:, :8] - score[:, 8:]).sigmoid()[:, :, None, None]  # a softmax over two
    torch.testing.assert_close(module(x), first * halves[0] + (1 - first) * halves[1])


@pytest.mark.parametrize("name", ["se", "eca", "cbam", "triplet"])
def test_frames_do_not_see_each_other_and_gradients_are_the_slope(name, x):
    module = seeded(make_attention(name, C))
    torch.testing.assert_close(module(x)[1:2], module(x[1:2]))
    small = x[:1, :, :3, :3].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(module, small)


def test_none_and_split_end_with_nothing(x):
    for name in ("none", "split"):
        assert make_attention(name, C)(x) is x
