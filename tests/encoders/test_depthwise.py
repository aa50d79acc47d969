import pytest
import torch
from torch.nn.functional import conv1d

from speechattn.encoders.depthwise import DepthwiseConv
from speechattn.masks import Chunks

SHAPES = pytest.mark.parametrize(
    ("lengths", "channels", "kernel"),
    [([9, 4, 7], 6, 5), ([3], 4, 7), ([12, 1], 16, 31), ([8, 0, 8], 3, 1)],
    ids=lambda v: str(v),
)


def expected(module, x, lengths):
    """Item by item through torch's one-dimensional convolution."""
    rows = []
    for b, n in enumerate(lengths):
        item = torch.zeros_like(x[b])
        if n:
            y = conv1d(x[b, :n].T, module.weight, module.bias, padding=module.kernel_size[0] // 2,
                       groups=module.groups)  # fmt: skip
            item = torch.cat((y.T, item[n:]))
        rows.append(item)
    return torch.stack(rows)


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_conv1d(lengths, channels, kernel, dtype):
    torch.manual_seed(0)
    module = DepthwiseConv(channels, kernel).to(dtype)
    x = torch.randn(len(lengths), max(lengths), channels, dtype=dtype)
    weight = torch.randn_like(x)
    for b, n in enumerate(lengths):
        weight[b, n:] = 0
    results = []
    for function in (lambda x: module(x, torch.tensor(lengths)),
                     lambda x: expected(module, x, lengths)):  # fmt: skip
        leaf = x.clone().requires_grad_()
        y = function(leaf) * (weight != 0)
        grads = torch.autograd.grad((y * weight).sum(), (leaf, module.weight, module.bias))
        results.append((y, *grads))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@SHAPES
def test_same_without_gradient(lengths, channels, kernel):
    module = DepthwiseConv(channels, kernel)
    x = torch.randn(len(lengths), max(lengths), channels)
    y = module(x, torch.tensor(lengths))
    with torch.no_grad():
        assert torch.allclose(module(x, torch.tensor(lengths)), y, atol=1e-6)


def tap_by_tap(module, x, lengths, size):
    """The definition: what each frame may read, summed."""
    kernel = module.kernel_size[0]
    rows = []
    for b, n in enumerate(lengths):
        row = [torch.zeros_like(x[b, 0])] * x.shape[1]
        for t in range(n):
            end = n if size is None else min(t // size * size + size, n)
            row[t] = module.bias + sum(
                module.weight[:, 0, k] * x[b, t + k - module.left]
                for k in range(kernel)
                if 0 <= t + k - module.left < end
            )
        rows.append(torch.stack(row))
    return torch.stack(rows)


STREAMS = pytest.mark.parametrize(
    ("size", "kernel", "causal"),
    [(1, 5, False), (2, 5, False), (4, 7, False), (5, 1, False), (3, 9, False), (99, 5, False),
     (None, 5, True), (2, 5, True), (3, 1, True)],
)  # fmt: skip


@STREAMS
def test_chunks_and_causality(size, kernel, causal):
    torch.manual_seed(0)
    module = DepthwiseConv(4, kernel, causal).double()
    lengths = [13, 6, 0, 8]
    x = torch.randn(4, 13, 4, dtype=torch.float64)
    weight = torch.randn_like(x)
    for b, n in enumerate(lengths):
        weight[b, n:] = 0
    chunks = None if size is None else Chunks(size)
    results = []
    for function in (lambda x: module(x, torch.tensor(lengths), chunks),
                     lambda x: tap_by_tap(module, x, lengths, size)):  # fmt: skip
        leaf = x.clone().requires_grad_()
        y = function(leaf) * (weight != 0)
        grads = torch.autograd.grad((y * weight).sum(), (leaf, module.weight, module.bias))
        results.append((y, *grads))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@STREAMS
def test_steps_equal_chunks(size, kernel, causal):
    module = DepthwiseConv(4, kernel, causal)
    x = torch.randn(2, 13, 4)
    size = size or 4
    past, outputs = module.init_state(2), []
    for piece in x.split(size, dim=1):
        y, past = module.step(piece, past)
        outputs.append(y)
    whole = module(x, torch.tensor([13, 13]), Chunks(size))
    assert torch.allclose(torch.cat(outputs, dim=1), whole, atol=1e-6)


def test_gradients_only_where_asked_for():
    module = DepthwiseConv(4, 3)
    module.weight.requires_grad_(False)
    x = torch.randn(2, 5, 4, requires_grad=True)
    module(x, torch.tensor([5, 2])).sum().backward()
    assert module.weight.grad is None
    assert x.grad is not None and module.bias.grad is not None


def test_even_kernel_is_refused():
    with pytest.raises(ValueError, match="odd"):
        DepthwiseConv(4, 6)


@pytest.mark.timeout(60, method="thread")  # what hangs is not Python, a signal would not reach it
@pytest.mark.parametrize("batch, frames, channels", [(7, 82, 144), (5, 74, 144), (8, 75, 192)])
def test_mixed_precision_neither_hangs_nor_loses_digits(batch, frames, channels):
    """oneDNN's bfloat16 kernel never returns for the first two shapes (torch 2.14)."""
    convolution = DepthwiseConv(channels, 15)
    x = torch.randn(batch, frames, channels, requires_grad=True)
    lengths = torch.full((batch,), frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = convolution(x, lengths)
    mixed.sum().backward()
    torch.testing.assert_close(mixed, convolution(x, lengths))
    assert x.grad.isfinite().all()
