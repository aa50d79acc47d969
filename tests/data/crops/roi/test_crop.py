"""Geometry of the crop, against numpy's own least squares and against drawn pictures."""

import cv2
import numpy as np
import pytest

from speechattn.data.crops.roi.crop import MEAN_FACE, crop_transform, similarity, warp


def turned(points: np.ndarray, scale: float, degrees: float, shift) -> np.ndarray:
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ (scale * rotation).T + shift


@pytest.mark.parametrize("seed", range(5))
def test_similarity_is_least_squares(seed):
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(5, 2)) * 30
    target = turned(source, 1.7, 25 * seed, [5, -3]) + rng.normal(size=(5, 2))
    # Unknowns a, b, tx, ty of x' = a x - b y + tx, y' = b x + a y + ty.
    rows = [[x, -y, 1, 0] for x, y in source] + [[y, x, 0, 1] for x, y in source]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows), target.T.ravel(), rcond=None)[0]
    matrix = similarity(source, target)
    np.testing.assert_allclose(matrix, [[a, -b], [b, a]], atol=1e-9)
    shift = target.mean(axis=0) - matrix @ source.mean(axis=0)
    np.testing.assert_allclose(shift, [tx, ty], atol=1e-8)


def test_points_that_coincide_are_an_error():
    with pytest.raises(ValueError, match="coincide"):
        similarity(np.ones((4, 2)), MEAN_FACE[:4])


@pytest.mark.parametrize("scale, degrees", [(1, 0), (0.4, 20), (6, -35), (2, 170)])
def test_mouth_is_in_the_middle_level_and_as_wide_as_asked(scale, degrees):
    points = turned(MEAN_FACE, scale, degrees, [300, 200])
    matrix = crop_transform(points, size=96, mouth_width=0.45)
    mouth = points[3:] @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(mouth.mean(axis=0), [47.5, 47.5], atol=1e-6)
    assert mouth[1, 0] - mouth[0, 0] == pytest.approx(0.45 * 96, rel=1e-3)
    # The mean face's own corners are 0.2 of 29 pixels out of level.
    assert abs(mouth[1, 1] - mouth[0, 1]) < 0.5
    nose = points[2] @ matrix[:, :2].T + matrix[:, 2]
    assert 0 < nose[1] < 40  # above the mouth, inside the crop


def test_opening_the_mouth_does_not_zoom():
    wide = MEAN_FACE.copy()
    wide[3:, 0] += [-6, 6]
    narrow = crop_transform(MEAN_FACE, 96, 0.45)
    np.testing.assert_allclose(crop_transform(wide, 96, 0.45)[:, :2], narrow[:, :2], atol=1e-9)


def smooth_picture(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(float)
    return 127 + 60 * np.sin(x / 23) + 50 * np.cos(y / 31 + x / 57)


@pytest.mark.parametrize("scale, degrees", [(0.8, 0), (1.3, 12), (3.0, -8), (7.0, 30)])
def test_warp_samples_where_the_transform_says(scale, degrees):
    points = turned(MEAN_FACE, scale, degrees, [420, 120])
    picture = smooth_picture(1100, 1100)
    matrix = crop_transform(points, 96, 0.45)
    crop = warp(np.rint(picture).astype(np.uint8), matrix, 96)
    assert crop.shape == (96, 96) and crop.dtype == np.uint8
    inverse = np.linalg.inv(matrix[:, :2])
    rows, columns = np.mgrid[:96, :96]
    where = (np.stack([columns, rows], axis=-1) - matrix[:, 2]) @ inverse.T
    x, y = where[..., 0], where[..., 1]
    inside = (x > 0) & (y > 0) & (x < 1099) & (y < 1099)
    expected = 127 + 60 * np.sin(x / 23) + 50 * np.cos(y / 31 + x / 57)
    assert inside.mean() > 0.9
    np.testing.assert_allclose(crop[inside], expected[inside], atol=4)


def test_large_faces_are_averaged_not_skipped():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1400, 1400), dtype=np.uint8)
    matrix = crop_transform(turned(MEAN_FACE, 10, 0, [100, 100]), 96, 0.45)
    factor = 1 / matrix[0, 0]
    crop = warp(noise, matrix, 96)
    # Averaging n independent pixels divides their spread by sqrt(n).
    assert crop.std() < 1.6 * noise.std() / factor
    plain = cv2.warpAffine(noise, matrix, (96, 96))
    assert plain.std() > 3 * crop.std()


def test_edge_is_repeated():
    picture = np.full((50, 50), 77, np.uint8)
    assert (warp(picture, crop_transform(MEAN_FACE - 60, 96, 0.45), 96) == 77).all()
