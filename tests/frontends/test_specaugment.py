"""SpecAugment against a loop that draws the same numbers."""

import math

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from speechattn.frontends.specaugment import SpecAugment

LENGTHS = torch.tensor([50, 31, 7, 1, 0])


def batch(lengths=LENGTHS, frames=50, bins=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), frames, bins, generator=generator) + 1
    for row, length in zip(x, lengths, strict=True):
        row[length:] = math.nan  # what looks at padding shows
    return x


def spans(sizes, widest, count, generator):
    """Lists of (start, end) for each row, by the text of the paper."""
    size = (len(sizes), count)
    widths = (torch.rand(size, generator=generator) * (torch.tensor(widest)[:, None] + 1)).long()
    starts = torch.rand(size, generator=generator)
    rows = []
    for row, total in enumerate(sizes):
        found = []
        for mask in range(count):
            width = int(widths[row, mask])
            start = math.floor(float(starts[row, mask] * (total - width + 1)))
            found.append((start, start + width))
        rows.append(found)
    return rows


@pytest.mark.parametrize("fill", ["zero", "mean"])
@pytest.mark.parametrize("time_masks, freq_masks", [(2, 2), (5, 0), (0, 3), (0, 0)])
def test_is_the_loop(fill, time_masks, freq_masks):
    module = SpecAugment(freq_masks, 6, time_masks, 12, time_ratio=0.5, fill=fill)
    for seed in range(20):
        x = batch(seed=seed)
        y = module(x, LENGTHS, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        widest = [min(12, int(n * 0.5)) for n in LENGTHS.tolist()]
        time = spans(LENGTHS.tolist(), widest, time_masks, generator)
        freq = spans([20] * 5, [6] * 5, freq_masks, generator)
        expected = x.clone()
        for row, length in enumerate(LENGTHS.tolist()):
            value = x[row, :length].mean(0) if fill == "mean" else torch.zeros(20)
            for start, end in time[row]:
                assert 0 <= start <= end <= length
                expected[row, start:end] = value
            for start, end in freq[row]:
                assert 0 <= start <= end <= 20
                expected[row, :length, start:end] = value[start:end]
        torch.testing.assert_close(y, expected, equal_nan=True, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("warp", [0, 5])
def test_padding_is_neither_read_nor_written(warp):
    module = SpecAugment(time_warp=warp)
    for seed in range(30):
        x = batch(seed=seed)
        y = module(x, LENGTHS, torch.Generator().manual_seed(seed))
        for row, length in enumerate(LENGTHS.tolist()):
            assert y[row, :length].isfinite().all()
            assert y[row, length:].isnan().all()
        other = torch.where(x.isnan(), 7.0, x)
        z = module(other, LENGTHS, torch.Generator().manual_seed(seed))
        assert (z[x.isnan()] == 7).all()
        assert torch.equal(z[~x.isnan()], y[~x.isnan()])


def test_masks_reach_every_place():
    module = SpecAugment(1, 5, 1, 10, time_ratio=1.0, fill="zero")
    x = torch.ones(200, 30, 12)
    lengths = torch.arange(200) % 21 + 10
    y = module(x, lengths, torch.Generator().manual_seed(0))
    widths = []
    for row, length in zip(y, lengths.tolist(), strict=True):
        time = (row[:length] == 0).all(1)
        freq = (row[:length] == 0).all(0)
        assert time.sum() <= 10 and (freq.sum() <= 5 or time.all())
        widths.append(int(time.sum()))
    assert set(range(11)) >= set(widths) and {0, 10} <= set(widths)
    last = torch.stack([row[n - 1] for row, n in zip(y, lengths.tolist(), strict=True)])
    assert (last == 0).all(1).any() and (y[:, 0] == 0).all(1).any()
    assert (y == 0).any(0).any(0).all()  # every bin


def test_only_in_training():
    module, x = SpecAugment().eval(), batch()
    assert module(x, LENGTHS) is x


def test_input_stays_and_gradients_pass():
    x = torch.randn(2, 40, 80, requires_grad=True)
    before = x.detach().clone()
    for fill in ("zero", "mean"):
        y = SpecAugment(time_warp=4, fill=fill)(x, torch.tensor([40, 22]))
        assert not torch.equal(y, x)
        y[0].sum().backward()
        assert x.grad.isfinite().all() and x.grad[0].any()
    assert torch.equal(x.detach(), before)


def test_seeds():
    module, x = SpecAugment(time_warp=5), batch().nan_to_num()

    def run(seed):
        return module(x, LENGTHS, torch.Generator().manual_seed(seed))

    state = torch.get_rng_state()
    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)  # without a generator torch's own, as dropout
    first = module(x, LENGTHS)
    torch.manual_seed(0)
    assert torch.equal(first, module(x, LENGTHS))


def test_half_precision():
    x = batch().nan_to_num()
    y = SpecAugment(time_warp=3)(x.bfloat16(), LENGTHS, torch.Generator().manual_seed(1))
    z = SpecAugment(time_warp=3)(x, LENGTHS, torch.Generator().manual_seed(1))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), z, atol=0.05, rtol=0.02)


def test_time_warp_is_piecewise_linear():
    """On features that are the time itself, the result is the warping curve."""
    frames, reach = 60, 8
    lengths = torch.tensor([60, 41, 18, 17, 5])
    x = torch.arange(frames, dtype=torch.float32)[None, :, None].repeat(5, 1, 3)
    module = SpecAugment(0, 0, 0, 0, time_warp=reach)
    moved = 0
    for seed in range(40):
        y = module(x, lengths, torch.Generator().manual_seed(seed))
        draws = torch.Generator().manual_seed(seed)
        points, shifts = torch.rand(5, 1, generator=draws), torch.rand(5, 1, generator=draws)
        for row, length in enumerate(lengths.tolist()):
            curve = y[row, :, 0].numpy()
            assert (y[row] == y[row, :, :1]).all()
            np.testing.assert_array_equal(curve[length:], np.arange(length, frames))
            if length < 2 * reach + 2:
                np.testing.assert_array_equal(curve, np.arange(frames))
                continue
            last = length - 1
            point = reach + float(points[row]) * (last - 2 * reach)
            target = point + (2 * float(shifts[row]) - 1) * (reach - 1)
            knots = [0, target, last], [0, point, last]
            expected = np.interp(np.arange(length), *knots)
            np.testing.assert_allclose(curve[:length], expected, atol=1e-3)
            moved = max(moved, np.abs(expected - np.arange(length)).max())
    assert 4 < moved < reach


def test_built_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--augment", type=SpecAugment | None)
    config = {
        "class_path": "speechattn.frontends.SpecAugment",
        "init_args": {"time_masks": 7, "fill": "zero"},
    }
    module = parser.instantiate(parser.parse_object({"augment": config})).augment
    assert (module.time_masks, module.fill, module.freq_width) == (7, "zero", 27)
