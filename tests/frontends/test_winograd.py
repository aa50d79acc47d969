"""WinogradConv against torch's convolution, and its rounding against double precision."""

import pytest
import torch
from torch import nn

from speechattn.frontends.winograd import WinogradConv


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (6, 6), (5, 7), (11, 2)])
@pytest.mark.parametrize(("channels", "out"), [(1, 1), (5, 7), (64, 32)])
def test_equals_the_direct_convolution(size, channels, out):
    torch.manual_seed(0)
    weight, bias = torch.randn(out, channels, 3, 3), torch.randn(out)
    x = torch.randn(4, channels, *size).contiguous(memory_format=torch.channels_last)
    found = WinogradConv(weight, bias)(x)
    expected = nn.functional.conv2d(x.double(), weight.double(), bias.double(), 1, 1)
    assert found.is_contiguous(memory_format=torch.channels_last) or 1 in size
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < 1e-5 * scale
