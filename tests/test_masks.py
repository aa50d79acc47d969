import pytest
import torch

from speechattn.masks import padding_mask


@pytest.mark.parametrize("lengths", [[3], [4, 0, 2], [5, 5], [0]])
@pytest.mark.parametrize("extra", [0, 2])
def test_true_on_real_frames(lengths, extra):
    width = max(lengths) + extra
    expected = [[t < n for t in range(width)] for n in lengths]
    mask = padding_mask(torch.tensor(lengths), width)
    assert mask.dtype == torch.bool
    assert mask.shape == (len(lengths), width)
    assert mask.tolist() == expected


def test_longest_item_by_default():
    assert padding_mask(torch.tensor([2, 4, 1])).shape == (3, 4)
