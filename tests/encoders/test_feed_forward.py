import torch

from speechattn.encoders.feed_forward import FeedForward


def test_equals_the_formula():
    module = FeedForward(4, 6, dropout=0.0)
    x = torch.randn(2, 3, 4)
    hidden = x @ module.expand.weight.T + module.expand.bias
    hidden = hidden * torch.sigmoid(hidden)
    assert torch.allclose(module(x), module.contract(hidden), atol=1e-6)
