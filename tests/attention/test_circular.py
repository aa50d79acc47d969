"""CircularSelfAttention: against its matrix of weights, written out, and by hand."""

import pytest
import torch

from speechattn.attention import CircularSelfAttention
from speechattn.masks import Chunks

D, H = 6, 2
LENGTHS = torch.tensor([9, 4, 1, 0])


def defined(module: CircularSelfAttention, x: torch.Tensor) -> torch.Tensor:
    """One item (T, D): row i of the circulant matrix is the weights, rolled to the right by i."""
    weights = module.weight(x).softmax(0)  # (T, H)
    values = module.value(x).unflatten(-1, (H, -1))
    heads = []
    for h in range(H):
        matrix = torch.stack([weights[:, h].roll(i) for i in range(len(x))])
        heads.append(matrix @ values[:, h])
    return module.output(torch.cat(heads, -1))


def test_the_circulant_matrix_and_its_gradients():
    torch.manual_seed(0)
    module = CircularSelfAttention(D, H).double().eval()
    x = torch.randn(4, 9, D, dtype=torch.float64, requires_grad=True)
    y = module(x, LENGTHS)
    assert y.isfinite().all()
    wanted = (x, *module.parameters())
    for row, n in enumerate(LENGTHS.tolist()):
        if not n:
            continue
        expected = defined(module, x[row, :n])
        torch.testing.assert_close(y[row, :n], expected)
        given = torch.randn_like(expected)
        found, by_hand = (
            torch.autograd.grad(part, wanted, given, retain_graph=True)
            for part in (y[row, :n], expected)
        )
        torch.testing.assert_close(found, by_hand)


def test_by_hand():
    """All weight on the second frame: each frame gets the next one, the last the first."""
    module = CircularSelfAttention(2, 1).eval()
    with torch.no_grad():
        for layer in (module.value, module.output):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
        module.weight.weight.copy_(torch.tensor([[0.0, 1.0]]))
    x = torch.tensor([[[1.0, 0.0], [2.0, 100.0], [3.0, 0.0], [9.0, 100.0]]])
    y = module(x, torch.tensor([3]))
    torch.testing.assert_close(y[0, :3, 0], torch.tensor([2.0, 3.0, 1.0]))


def test_no_causal_form():
    with pytest.raises(ValueError, match="whole sequences only"):
        CircularSelfAttention(D, H)(torch.randn(1, 3, D), torch.tensor([3]), chunks=Chunks(1))


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="4 heads do not cut width 6"):
        CircularSelfAttention(6, 4)
