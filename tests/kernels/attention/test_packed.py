"""Packed attention against each item alone by the definition, and packing against itself."""

import pytest
import torch

from speechattn.kernels.attention import relative_attention as relative
from speechattn.kernels.attention import tiles
from speechattn.kernels.attention.exact import reference
from speechattn.kernels.attention.local_attention import local_attention
from speechattn.kernels.attention.packed import (
    Packed,
    attention_packed,
    by_group,
    local_attention_packed,
    pack,
    relative_attention_packed,
    unpack,
)
from speechattn.kernels.attention.window import Window
from speechattn.masks import Chunks, padding_mask

LENGTHS = [[1], [11], [12, 0, 5, 1], [0, 7], [6, 6], [3, 9, 9, 2, 10]]
HEADS, DEPTH = 4, 6


@pytest.fixture(params=["one group", "items alone"])
def cut(request, monkeypatch):
    if request.param == "items alone":
        monkeypatch.setattr(tiles, "GROUP_SCORES", 1)


def inputs(lengths, shared=1):
    """q, k, v (N, heads, Dh), boundaries, and each item's rows."""
    torch.manual_seed(0)
    frames = sum(lengths)
    heads = HEADS, HEADS // shared, HEADS // shared
    tensors = [torch.randn(frames, h, DEPTH, dtype=torch.double).requires_grad_() for h in heads]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return tensors, bounds, [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]


def assert_same(y, expected, leaves):
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(y)
    grads = [torch.autograd.grad(z, leaves, weight, materialize_grads=True) for z in (y, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("chunks", [None, Chunks(1), Chunks(3, 2)], ids=str)
@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_exact_equals_each_item_alone(lengths, shared, chunks, cut):
    tensors, bounds, items = inputs(lengths, shared)
    y = attention_packed(*tensors, bounds, max(lengths) + 2, chunks)
    alone = [
        reference(*(x[None, rows] for x in tensors), torch.tensor([rows.stop - rows.start]), chunks)
        for rows in items
        if rows.stop > rows.start
    ]
    assert_same(y, torch.cat(alone, 1)[0], tensors)


@pytest.mark.parametrize("chunks", [None, Chunks(3, 2)], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_relative_equals_each_item_alone(lengths, chunks, cut):
    tensors, bounds, items = inputs(lengths)
    longest = max(lengths) + 2
    p = torch.randn(2 * longest - 1, HEADS, DEPTH, dtype=torch.double).requires_grad_()
    u, w = (torch.randn(HEADS, DEPTH, dtype=torch.double).requires_grad_() for _ in range(2))
    y = relative_attention_packed(*tensors, p, u, w, bounds, chunks)
    alone = []
    for rows in items:
        n = rows.stop - rows.start
        if n:
            # Distances from n-1 down to 1-n; the middle row is distance 0.
            band = p[longest - 1 - (n - 1) : longest - 1 + n]
            parts = [x[None, rows] for x in tensors]
            alone.append(relative.reference(*parts, band, u, w, torch.tensor([n]), chunks))
    assert_same(y, torch.cat(alone, 1)[0], [*tensors, p, u, w])


@pytest.mark.parametrize("window", [Window(2, 1), Window(3, 0, dilation=2)], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_local_equals_each_item_alone(lengths, window, cut):
    tensors, bounds, items = inputs(lengths)
    sink = torch.randn(HEADS, dtype=torch.double).requires_grad_()
    y = local_attention_packed(*tensors, bounds, max(lengths) + 2, window, sink=sink)
    alone = []
    for rows in items:
        n = rows.stop - rows.start
        if n:
            parts = [x[None, rows] for x in tensors]
            alone.append(local_attention(*parts, torch.tensor([n]), window, sink=sink))
    assert_same(y, torch.cat(alone, 1)[0], [*tensors, sink])


@pytest.mark.parametrize("lengths", [*LENGTHS, [0, 0]], ids=str)
def test_unpack_undoes_pack(lengths):
    torch.manual_seed(0)
    x = torch.randn(len(lengths), max(lengths) + 1, 3, 2, dtype=torch.double).requires_grad_()
    packed = pack(x, torch.tensor(lengths))
    assert packed.frames.shape == (sum(lengths), 3, 2)
    assert packed.cu_seqlens.diff().tolist() == packed.lengths.tolist() == lengths
    y, again = unpack(packed)
    assert again.tolist() == lengths
    real = padding_mask(torch.tensor(lengths), x.shape[1])[..., None, None]
    assert_same(y, x.masked_fill(~real, 0.0), [x])


def test_layers_between_keep_the_items():
    x, lengths = torch.randn(3, 8, 5), torch.tensor([8, 2, 5])
    packed = pack(x, lengths)
    layer = torch.nn.Linear(5, 7)
    y, _ = unpack(packed.replace(layer(packed.frames)))
    real = padding_mask(lengths, 8)
    torch.testing.assert_close(y[real], layer(x)[real])
    with pytest.raises(ValueError, match="15 frames replaced by 14"):
        packed.replace(packed.frames[1:])


def test_no_item_has_frames(cut):
    nothing = torch.zeros(0, HEADS, DEPTH, requires_grad=True)
    y = attention_packed(nothing, nothing, nothing, torch.tensor([0, 0, 0]), 4)
    assert y.shape == (0, HEADS, DEPTH)


def test_dropout_is_applied():
    (q, k, v), bounds, _ = inputs([9, 4])
    torch.manual_seed(0)
    assert not torch.equal(
        attention_packed(q, k, v, bounds, 9, dropout=0.5), attention_packed(q, k, v, bounds, 9)
    )


def test_half_precision():
    tensors, bounds, _ = inputs([9, 4, 7])
    half = [x.detach().bfloat16() for x in tensors]
    y = attention_packed(*half, bounds, 9)
    assert y.dtype == torch.bfloat16
    expected = attention_packed(*(x.double() for x in half), bounds, 9)
    torch.testing.assert_close(y.double(), expected, atol=0.03, rtol=0.03)


def test_a_kernel_gets_items_without_copies_where_they_are_long(monkeypatch):
    """Long items are views of the packed tensors: that is what packing is for."""
    monkeypatch.setattr(tiles, "GROUP_SCORES", 1)
    x = torch.randn(11, HEADS, DEPTH)
    seen = []

    def compute(q, lengths):
        seen.append((q.data_ptr() - x.data_ptr(), q.shape[1], lengths.tolist()))
        return q

    by_group(compute, (x,), torch.tensor([0, 5, 5, 11]), 6)
    step = HEADS * DEPTH * 4
    assert seen == [(0, 5, [5]), (5 * step, 6, [6])]


def test_wrong_boundaries_are_refused():
    x = torch.randn(5, HEADS, DEPTH)
    for bounds in ([0, 4], [1, 5], [0, 6, 5]):
        with pytest.raises(ValueError, match="boundaries"):
            attention_packed(x, x, x, torch.tensor(bounds), 5)
    with pytest.raises(ValueError, match="an item of 5 frames, longest 4"):
        attention_packed(x, x, x, torch.tensor([0, 5]), 4)
    with pytest.raises(ValueError, match="an item of 6 frames in a batch of 5"):
        pack(torch.randn(1, 5, 2), torch.tensor([6]))


def test_a_packed_batch_is_a_value():
    packed = Packed(torch.zeros(3, 2), torch.tensor([0, 1, 3]), 2)
    with pytest.raises(AttributeError):
        packed.longest = 5
