"""Strided attention: every s-th row of plain relative attention, whichever way it is computed."""

import pytest
import torch

from speechattn.attention.positions import relative_positions
from speechattn.attention.relative import RelativeSelfAttention
from speechattn.attention.strided import StridedSelfAttention
from speechattn.kernels.attention.strided import strided_attention


def pair(stride, width=8, heads=2):
    torch.manual_seed(0)
    strided = StridedSelfAttention(width, heads, stride=stride).double()
    plain = RelativeSelfAttention(width, heads).double()
    plain.load_state_dict(strided.state_dict())
    return strided, plain


@pytest.mark.parametrize("kernel", ["reference", "torch"])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [[1], [2], [8, 3], [7, 1, 4]], ids=str)
def test_equals_rows_of_plain_attention(lengths, stride, kernel, monkeypatch):
    """Outputs and all gradients, lengths that no stride divides among them."""
    monkeypatch.setenv("SPEECHATTN_KERNELS", kernel)
    x = torch.randn(len(lengths), max(lengths), 8, dtype=torch.double)
    weight = torch.randn_like(x)
    results = []
    for module in pair(stride):
        leaf = x.clone().requires_grad_()
        y = module(leaf, torch.tensor(lengths))
        if not isinstance(module, StridedSelfAttention):
            y = y[:, ::stride]
        y = torch.cat([y[b, : -(-n // stride)] for b, n in enumerate(lengths)])
        grads = torch.autograd.grad(
            (y * weight.view(-1, 8)[: len(y)]).sum(), (leaf, *module.parameters())
        )
        results.append((y, *grads))
    assert len(results[0][0]) == sum(-(-n // stride) for n in lengths)
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stride", [2, 3])
def test_several_tiles(stride):
    """Rows of plain attention again, with more queries than a tile has."""
    strided, plain = pair(stride)
    x, lengths = torch.randn(2, 410, 8, dtype=torch.double), torch.tensor([410, 391])
    results = []
    for module in (strided, plain):
        leaf = x.clone().requires_grad_()
        y = module(leaf, lengths)
        if module is plain:
            y = y[:, ::stride]
        y = torch.cat([y[b, : -(-n // stride)] for b, n in enumerate(lengths.tolist())])
        grads = torch.autograd.grad((y * y.detach().cos()).sum(), (leaf, *module.parameters()))
        results.append((y, *grads))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    assert torch.equal(strided.eval()(x, lengths)[0], strided.train()(x, lengths)[0])


def test_dropout_is_drawn_once():
    """The backward pass computes the weights again; it has to drop the same ones."""
    torch.manual_seed(0)
    module = StridedSelfAttention(8, 2, stride=2, dropout=0.5).double()
    x = torch.randn(1, 300, 8, dtype=torch.double, requires_grad=True)
    lengths, direction = torch.tensor([300]), torch.randn(1, 300, 8, dtype=torch.double)

    def run(x):
        torch.manual_seed(3)
        return module(x, lengths).square().sum()

    (grad,) = torch.autograd.grad(run(x), x)
    with torch.no_grad():
        slope = (run(x + 1e-6 * direction) - run(x - 1e-6 * direction)) / 2e-6
    assert torch.allclose((grad * direction).sum(), slope, rtol=1e-5)
    module.eval()
    assert not torch.allclose(run(x), module.train()(x, lengths).square().sum(), rtol=1e-3)


@pytest.mark.parametrize("kernel", ["reference", "torch"])
def test_bfloat16(kernel, monkeypatch):
    monkeypatch.setenv("SPEECHATTN_KERNELS", kernel)
    module, _ = pair(2)
    module.float()
    x, lengths = torch.randn(2, 40, 8), torch.tensor([40, 21])
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x, lengths)
    assert (y.float() - module(x, lengths))[:, :11].abs().max() < 0.05


def test_padding_content_does_not_matter():
    module, _ = pair(2)
    module.float()
    x, lengths = torch.randn(3, 9, 8), [9, 4, 7]
    for b, n in enumerate(lengths):
        x[b, n:] = 1e3
    y = module(x, torch.tensor(lengths))
    for b, n in enumerate(lengths):
        alone = module(x[b : b + 1, :n], torch.tensor([n]))
        assert torch.allclose(y[b, : alone.shape[1]], alone[0], atol=1e-5)


def test_positions_given_or_not():
    module, _ = pair(2)
    x, lengths = torch.randn(2, 5, 8).double(), torch.tensor([5, 4])
    given = module(x, lengths, relative_positions(5, 8).double())
    assert torch.equal(module(x, lengths), given)


def test_empty_item_gives_no_nan():
    module, _ = pair(2)
    x = torch.randn(2, 5, 8, dtype=torch.double, requires_grad=True)
    y = module(x, torch.tensor([5, 0]))
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()


@pytest.mark.parametrize(("queries", "distances"), [(6, 21), (5, 21), (6, 22)])
def test_shapes_that_do_not_go_together(queries, distances):
    q, k, p, bias = (torch.randn(*s, 2, 4) for s in ((1, queries), (1, 11), (distances,), ()))
    if (queries, distances) == (6, 21):
        assert (
            strided_attention(q, k, k, p, bias, bias, lengths=torch.tensor([11]), stride=2).shape
            == q.shape
        )
        return
    with pytest.raises(ValueError, match="want 6 queries and p of 2T-1 rows"):
        strided_attention(q, k, k, p, bias, bias, lengths=torch.tensor([11]), stride=2)


def test_refuses_a_stride_of_nothing():
    with pytest.raises(ValueError, match="at least 1"):
        StridedSelfAttention(8, 2, stride=0)
