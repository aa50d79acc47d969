"""Operations along time: against loops over clips, and nothing passes from clip to clip."""

import pytest
import torch
from torch import nn

from speechattn.frontends.temporal import Clips, SpatioTemporalConv, TemporalShift

LENGTHS = (3, 0, 1, 5)


def packed(channels: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(LENGTHS), channels, 4, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("lengths", [LENGTHS, (1, 1), (4,), (0, 2), (2, 0), (0, 0)])
def test_clips(lengths):
    clips = Clips.of(torch.tensor(lengths))
    expected = [(i, t == 0, t == n - 1) for i, n in enumerate(lengths) for t in range(n)]
    found = zip(clips.item.tolist(), clips.first.tolist(), clips.last.tolist(), strict=True)
    assert list(found) == expected
    assert clips.count == len(lengths)


def test_shift_is_that_of_each_clip():
    x = packed()
    found = TemporalShift()(x, Clips.of(torch.tensor(LENGTHS)))
    begun = 0
    for n in LENGTHS:
        clip, shifted = x[begun : begun + n], found[begun : begun + n]
        zero = torch.zeros(1, 2, 4, 3, dtype=x.dtype)
        if n:
            torch.testing.assert_close(shifted[:, :2], torch.cat([clip[1:, :2], zero]))
            torch.testing.assert_close(shifted[:, 2:4], torch.cat([zero, clip[:-1, 2:4]]))
            torch.testing.assert_close(shifted[:, 4:], clip[:, 4:])
        begun += n


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_is_a_3d_convolution_of_each_clip(stride):
    torch.manual_seed(0)
    module = SpatioTemporalConv(16, 6, stride, "swish").double().eval()
    nn.init.normal_(module.norm.running_mean)
    x = packed()
    found = module(x, Clips.of(torch.tensor(LENGTHS)))
    middle = module.spatial.out_channels
    # (O, 3 * middle, 1, 1), frame after frame, as a kernel over 3 frames
    kernel = module.temporal.weight.view(6, 3, middle, 1, 1).transpose(1, 2)
    begun = 0
    for n in LENGTHS:
        if n:
            y = module.act(module.norm(module.spatial(x[begun : begun + n])))
            y = nn.functional.conv3d(y.transpose(0, 1)[None], kernel, padding=(1, 0, 0))
            torch.testing.assert_close(found[begun : begun + n], y[0].transpose(0, 1))
        begun += n


@pytest.mark.parametrize(("wide", "out"), [(64, 64), (64, 128), (256, 512)])
def test_conv_has_the_parameters_of_a_3d_one(wide, out):
    module = SpatioTemporalConv(wide, out, 1, "relu")
    count = module.spatial.weight.numel() + module.temporal.weight.numel()
    assert count == pytest.approx(27 * wide * out, rel=0.01)
    assert count <= 27 * wide * out


@pytest.mark.parametrize("module", [TemporalShift(), SpatioTemporalConv(4, 3, 1, "swish")])
def test_gradient_is_the_slope(module):
    module = module.double().eval()
    x = torch.randn(4, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    clips = Clips.of(torch.tensor([1, 3]))
    assert torch.autograd.gradcheck(lambda x: module(x, clips), x)
