import pytest
import torch

from speechattn.encoders.feed_forward import FeedForward


def test_equals_the_formula():
    module = FeedForward(4, 6, dropout=0.0)
    x = torch.randn(2, 3, 4)
    hidden = x @ module.expand.weight.T + module.expand.bias
    hidden = hidden * torch.sigmoid(hidden)
    assert torch.allclose(module(x), module.contract(hidden), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("tanh", lambda x: 1 - 2 / ((2 * x).exp() + 1)),
        ("hardtanh", lambda x: x.clamp(-1, 1)),
        ("selu", lambda x: 1.0507 * torch.where(x > 0, x, 1.67326 * (x.exp() - 1))),
    ],
)
def test_activations(name, function):
    torch.manual_seed(0)
    module = FeedForward(4, 6, dropout=0.0, activation=name)
    x = 3 * torch.randn(2, 3, 4)
    expected = module.contract(function(module.expand(x)))
    assert torch.allclose(module(x), expected, atol=1e-4)


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="swish"):
        FeedForward(4, 6, activation="swich")
