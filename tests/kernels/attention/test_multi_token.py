"""Filtered scores: against loops that write the definition out."""

import math

import pytest
import torch

from speechattn.kernels.attention import tiles
from speechattn.kernels.attention.multi_token import multi_token_attention
from speechattn.kernels.backend import VARIABLE

LENGTHS = torch.tensor([13, 6, 0])
HEADS, WIDTH = 4, 3


def inputs(queries=3, keys=4):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 3, 13, HEADS, WIDTH, dtype=torch.float64)
    filters = torch.randn(HEADS, queries, keys, dtype=torch.float64)
    mix = torch.randn(2, 2, 2, dtype=torch.float64)
    return q, k, v, filters, mix


def by_loops(q, k, v, filters, mix, n, causal):
    """One item, a weight at a time."""

    def sees(i, j):
        return 0 <= i < n and 0 <= j < n and (j <= i or not causal)

    _, above, width = filters.shape
    weights = torch.zeros(HEADS, n, n, dtype=q.dtype)
    for h in range(HEADS):
        for i in range(n):
            row = []
            for j in range(n):
                total = torch.zeros((), dtype=q.dtype)
                for a in range(above):
                    for b in range(width):
                        x, y = i - above + 1 + a, j - width // 2 + b
                        if sees(x, y):
                            total = total + filters[h, a, b] * (q[x, h] @ k[y, h])
                row.append(total / math.sqrt(WIDTH) if sees(i, j) else total - math.inf)
            weights[h, i] = torch.stack(row).softmax(0)
    y = torch.zeros(n, HEADS, WIDTH, dtype=q.dtype)
    for h in range(HEADS):
        group, place = divmod(h, mix.shape[1])
        for g in range(mix.shape[1]):
            of = group * mix.shape[1] + g
            y[:, h] += mix[group, place, g] * (weights[of] @ v[:n, h])
    return y


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (3, 4), (2, 5), (20, 30)])
def test_the_definition(causal, queries, keys, backend, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    monkeypatch.setattr(tiles, "_SMALLEST", 4)
    monkeypatch.setattr(tiles, "_LARGEST", 4)
    q, k, v, filters, mix = inputs(queries, keys)
    y = multi_token_attention(q, k, v, LENGTHS, filters=filters, mix=mix, causal=causal)
    for b, n in enumerate(LENGTHS.tolist()):
        expected = by_loops(q[b], k[b], v[b], filters, mix, n, causal)
        torch.testing.assert_close(y[b, :n], expected)
        assert (y[b, n:] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_by_tiles(causal, monkeypatch):
    monkeypatch.setattr(tiles, "_SMALLEST", 4)
    monkeypatch.setattr(tiles, "_LARGEST", 4)
    given = [x.requires_grad_() for x in inputs()]
    found = []
    for backend in ("reference", "torch"):
        monkeypatch.setenv(VARIABLE, backend)
        q, k, v, filters, mix = given
        y = multi_token_attention(q, k, v, LENGTHS, filters=filters, mix=mix, causal=causal)
        found.append(torch.autograd.grad(y.square().sum(), given))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_no_tensor_of_all_pairs():
    """What a pass over 1,200 frames makes at once, forwards and backwards."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    q = torch.randn(1, 1200, 2, 4, requires_grad=True)
    filters, mix = torch.randn(2, 2, 3), torch.eye(2)[None]
    with Watch():
        multi_token_attention(
            q, q, q, torch.tensor([1200]), filters=filters, mix=mix
        ).sum().backward()
    assert largest < 2 * 1200 * 1200 / 4
