"""Sums around a circle: against one that is written out, and by hand."""

import pytest
import torch

from speechattn.kernels.attention.circular_convolution import (
    _good_size,
    by_fft,
    circular_convolution,
    reference,
)

LENGTHS = torch.tensor([11, 4, 0, 1])


def inputs(dtype=torch.float64):
    torch.manual_seed(0)
    return torch.randn(4, 11, 2, dtype=dtype), torch.randn(4, 11, 2, 3, dtype=dtype)


def test_by_hand():
    weights = torch.tensor([1.0, 0.0, 2.0])[None, :, None]
    values = torch.tensor([3.0, 5.0, 7.0])[None, :, None, None]
    y = circular_convolution(weights, values, torch.tensor([3]))
    expected = [3 + 2 * 7, 5 + 2 * 3, 7 + 2 * 5]
    torch.testing.assert_close(y.flatten(), torch.tensor(expected, dtype=torch.float32))


def test_a_loop_over_frames():
    weights, values = inputs()
    y = reference(weights, values, LENGTHS)
    for b, n in enumerate(LENGTHS.tolist()):
        for i in range(n):
            expected = sum(weights[b, j, :, None] * values[b, (i + j) % n] for j in range(n))
            torch.testing.assert_close(y[b, i], expected)


def test_transforms_equal_the_definition_and_its_gradients():
    weights, values = (x.requires_grad_() for x in inputs())
    mask = (torch.arange(11) < LENGTHS[:, None])[..., None]
    w, v = weights * mask, values * mask[..., None]
    one, other = reference(w, v, LENGTHS), by_fft(w, v, LENGTHS)
    torch.testing.assert_close(one, other)
    given = torch.randn_like(one) * mask[..., None]
    wanted = torch.autograd.grad(one, (weights, values), given, retain_graph=True)
    found = torch.autograd.grad(other, (weights, values), given)
    torch.testing.assert_close(found, wanted)


def test_what_stands_beyond_an_item_is_not_read():
    weights, values = inputs()
    y = circular_convolution(weights, values, LENGTHS)
    hidden = torch.arange(11) >= LENGTHS[:, None]
    weights[hidden], values[hidden] = torch.nan, torch.inf
    torch.testing.assert_close(circular_convolution(weights, values, LENGTHS), y)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precision(dtype, tolerance):
    weights, values = inputs(dtype)
    y = circular_convolution(weights, values, LENGTHS)
    assert y.dtype == dtype
    expected = circular_convolution(weights.double(), values.double(), LENGTHS)
    torch.testing.assert_close(y.double(), expected, atol=tolerance * 10, rtol=tolerance)


@pytest.mark.parametrize(("least", "size"), [(1, 1), (2, 2), (7, 8), (11, 12), (46, 48), (97, 100)])
def test_sizes_of_transforms(least, size):
    assert _good_size(least) == size
