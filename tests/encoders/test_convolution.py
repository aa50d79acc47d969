import torch
from torch.nn import functional

from speechattn.encoders.convolution import ConvolutionModule

LENGTHS = [11, 4, 1, 8]


def test_batch_gives_what_items_give():
    torch.manual_seed(0)
    module = ConvolutionModule(8, 5).eval()
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    x = torch.randn(4, 13, 8) * 3
    y = module(x, torch.tensor(LENGTHS))
    for b, n in enumerate(LENGTHS):
        alone = module(x[b : b + 1, :n], torch.tensor([n]))
        assert torch.allclose(y[b, :n], alone[0], atol=1e-5)


def test_equals_convolutions():
    """The paper's pointwise convolutions, as convolutions."""
    module = ConvolutionModule(6, 3).eval()
    x = torch.randn(1, 9, 6)
    h = functional.conv1d(x.mT, module.expand.weight[..., None], module.expand.bias)
    h = h[:, :6] * torch.sigmoid(h[:, 6:])
    h = functional.conv1d(h, module.depthwise.weight, module.depthwise.bias, padding=1, groups=6)
    h = h / (1 + 1e-5) ** 0.5  # batch norm as it starts
    h = h * torch.sigmoid(h)
    h = functional.conv1d(h, module.contract.weight[..., None], module.contract.bias)
    assert torch.allclose(module(x, torch.tensor([9])), h.mT, atol=1e-5)
