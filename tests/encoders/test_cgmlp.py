import pytest
import torch
from torch.nn import functional

from speechattn.encoders.cgmlp import ConvolutionalGatingMLP

LENGTHS = [11, 4, 1, 8]


def test_batch_gives_what_items_give():
    torch.manual_seed(0)
    module = ConvolutionalGatingMLP(8, 12, 5).eval()
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    x = torch.randn(4, 13, 8) * 3
    y = module(x, torch.tensor(LENGTHS))
    for b, n in enumerate(LENGTHS):
        alone = module(x[b : b + 1, :n], torch.tensor([n]))
        assert torch.allclose(y[b, :n], alone[0], atol=1e-5)


def test_gate_starts_open():
    module = ConvolutionalGatingMLP(6, 8, 3, dropout=0.0)
    x = torch.randn(2, 7, 6)
    content = functional.gelu(module.expand(x))[..., :4]
    assert torch.allclose(module(x, torch.tensor([7, 5])), module.contract(content), atol=1e-4)


def test_gates_by_the_neighbourhood():
    """Frame by frame, from 2207.02971 section 3.3."""
    torch.manual_seed(0)
    module = ConvolutionalGatingMLP(6, 8, 3, dropout=0.0)
    torch.nn.init.normal_(module.depthwise.weight)
    x = torch.randn(1, 5, 6)
    content, gate = functional.gelu(module.expand(x)).chunk(2, dim=-1)
    gate = functional.pad(module.norm(gate), (0, 0, 1, 1))
    rows = []
    for t in range(5):
        taps = gate[0, t : t + 3].T * module.depthwise.weight[:, 0]  # (C, K)
        rows.append(content[0, t] * (taps.sum(1) + module.depthwise.bias))
    expected = module.contract(torch.stack(rows))
    assert torch.allclose(module(x, torch.tensor([5]))[0], expected, atol=1e-5)


def test_gate_linear_and_activation():
    torch.manual_seed(0)
    module = ConvolutionalGatingMLP(6, 8, 3, 0.0, linear=True, gate_activation="tanh")
    x, lengths = torch.randn(1, 5, 6), torch.tensor([5])
    content, gate = functional.gelu(module.expand(x)).chunk(2, dim=-1)
    still_open = module.contract(content * torch.tensor(1.0).tanh())
    assert torch.allclose(module(x, lengths), still_open, atol=1e-4)
    torch.nn.init.normal_(module.linear.weight)
    torch.nn.init.normal_(module.depthwise.weight)
    gate = module.depthwise(module.norm(gate), lengths)
    gate = (gate @ module.linear.weight.T + module.linear.bias).tanh()
    assert torch.allclose(module(x, lengths), module.contract(content * gate), atol=1e-5)


def test_odd_units_are_refused():
    with pytest.raises(ValueError, match="even"):
        ConvolutionalGatingMLP(4, 7)
