"""Scales: the middle of the largest crop is the smaller crop, so one is stored."""

import os
import sys

import numpy as np
import pytest

from speechattn.data.augment import CenterCrop
from speechattn.data.crops.roi import MouthCropper, RoiItem, RoiOptions, extract
from speechattn.data.crops.roi.crop import MEAN_FACE, crop_transform, warp
from speechattn.data.crops.store import CropStore
from speechattn.errors import ConfigError

sys.path.insert(0, os.path.dirname(__file__))
from marker_detector import Marker, square_video  # noqa: E402

SCALES = (48, 64, 96, 112, 128)


def picture(seed: int, size: int = 700) -> np.ndarray:
    """Noise of all fineness, like a real picture's."""
    rng = np.random.default_rng(seed)
    out = np.zeros((size, size))
    for step in (2, 5, 20, 90):
        coarse = rng.normal(size=(size // step + 2, size // step + 2))
        out += 25 * np.kron(coarse, np.ones((step, step)))[:size, :size]
    return np.clip(out + 127, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(6))
def test_the_middle_of_the_largest_is_the_smaller_cut_directly(seed):
    rng = np.random.default_rng(100 + seed)
    angle, scale = rng.uniform(-0.5, 0.5), rng.uniform(0.5, 5)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (MEAN_FACE - 56) @ turn.T + 350 + rng.uniform(-20, 20, 2)
    whole = RoiOptions(scales=SCALES)
    assert whole.side == 128
    stored = warp(picture(seed), crop_transform(points, 128, whole.side_mouth_width), 128)
    for scale in SCALES:
        alone = RoiOptions(size=scale, mouth_width=0.45 * 96 / scale)
        direct = warp(picture(seed), crop_transform(points, scale, alone.mouth_width), scale)
        derived = CenterCrop(scale)(stored)
        # OpenCV rounds places to 1/32 of a pixel.
        difference = np.abs(derived.astype(int) - direct)
        assert difference.mean() < 0.2 and difference.max() <= 6
        # Wrong by a pixel it would be far more.
        assert np.abs(np.diff(direct.astype(int), axis=1)).mean() > 4


def test_every_scale_shows_the_mouth_equally_wide():
    for scale in SCALES:
        options = RoiOptions(scales=(scale,))
        matrix = crop_transform(MEAN_FACE * 3, options.side, options.side_mouth_width)
        mouth = MEAN_FACE[3:] * 3 @ matrix[:, :2].T + matrix[:, 2]
        assert mouth[1, 0] - mouth[0, 0] == pytest.approx(0.45 * 96, rel=1e-3)
        np.testing.assert_allclose(mouth.mean(axis=0), (scale - 1) / 2, atol=1e-6)


def test_middles_of_middles_are_the_same():
    clip = np.random.default_rng(0).integers(0, 256, (3, 128, 128), dtype=np.uint8)
    for scale in SCALES:
        for seen in (44, 47, 48):  # what a model of this scale may look at
            middle = CenterCrop(seen)(CenterCrop(scale)(clip))
            np.testing.assert_array_equal(middle, CenterCrop(seen)(clip))


@pytest.fixture
def square(tmp_path):
    return square_video(tmp_path / "square.mp4")


def test_a_store_holds_the_largest_and_can_be_gone_on_with_for_other_scales(tmp_path, square):
    options = RoiOptions(scales=SCALES, smoothing=3)
    extract([RoiItem("k", square)], tmp_path / "crops", options, 0, detector=Marker, progress=False)
    stored = CropStore(tmp_path / "crops").read("k")
    assert stored.shape == (12, 128, 128)
    direct = MouthCropper(RoiOptions(smoothing=3), Marker()).crop(square).frames
    difference = np.abs(CenterCrop(96)(stored).astype(int) - direct)
    assert difference.max() <= 6
    fewer = RoiOptions(scales=(64, 128), smoothing=3)  # the same crops on disk
    summary = extract([RoiItem("k", square)], tmp_path / "crops", fewer, 0, progress=False)
    assert summary.skipped == 1
    with pytest.raises(ConfigError, match="size was 128, is 112"):
        smaller = RoiOptions(scales=(48, 112), smoothing=3)
        extract([RoiItem("k", square)], tmp_path / "crops", smaller, 0, progress=False)


@pytest.mark.parametrize("scales", [(48, 63), (0, 64), (95, 96)])
def test_scales_that_have_no_common_middle_are_refused(scales):
    with pytest.raises(ValueError, match="scales"):
        RoiOptions(scales=scales)


def test_scales_come_from_yaml():
    from speechattn.config import build

    options = build(RoiOptions, {"scales": [48, 128]}, "roi")
    assert options == RoiOptions(scales=(48, 128)) and options.side == 128
