"""Cutting along time: every real frame once, padding never."""

import pytest
import torch

from speechattn.kernels.attention.time_blocks import blocks, put, take


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("lengths", [[7, 3, 0, 9], [9, 9], [5], [0], []], ids=str)
def test_taken_and_put_back(lengths, size):
    torch.manual_seed(0)
    frames = 11
    x = torch.randn(len(lengths), frames, 2, 3)
    y, once = torch.zeros_like(x), torch.zeros(len(lengths), frames, 2, 1)
    order = None
    for block in blocks(torch.tensor(lengths, dtype=torch.int64), frames, size):
        part = take(x, block)
        assert part.shape == (block.count * 2, block.stop - block.start, 3)
        put(y, block, part)
        put(once, block, torch.ones_like(part[..., :1]), add=True)
        # A state of all items is cut from the front.
        items = torch.arange(len(lengths))[block.items].tolist()
        assert order is None or items == order[: len(items)]
        order = items if order is None else order
    for row, n in enumerate(lengths):
        assert torch.equal(y[row, :n], x[row, :n]) and (y[row, n:] == 0).all()
        assert (once[row, :n] == 1).all() and (once[row, n:] == 0).all()


def test_items_that_have_ended_cost_nothing():
    cut = blocks(torch.tensor([8, 30, 8]), 40, 10)
    assert [b.count for b in cut] == [3, 1, 1] and cut[-1].stop == 30


def test_halves_are_widened():
    (block,) = blocks(torch.tensor([4]), 4, 4)
    assert take(torch.ones(1, 4, 1, 2).bfloat16(), block).dtype == torch.float32
    assert take(torch.ones(1, 4, 1, 2).double(), block).dtype == torch.float64
