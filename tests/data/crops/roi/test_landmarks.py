"""Landmark files in their several forms."""

import numpy as np
import pytest

from speechattn.data.crops.roi.landmarks import five_points, load_landmarks
from speechattn.errors import MediaError


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 200, (30, 5, 2)).astype(np.float32)


def test_68_points_become_5():
    points = np.random.default_rng(1).uniform(0, 100, (4, 68, 2))
    got = five_points(points)
    assert got.shape == (4, 5, 2)
    for frame, five in zip(points, got, strict=True):
        np.testing.assert_allclose(five[0], sum(frame[36:42]) / 6)
        np.testing.assert_allclose(five[1], sum(frame[42:48]) / 6)
        np.testing.assert_array_equal(five[2:], frame[[30, 48, 54]])
    np.testing.assert_array_equal(five_points(got), got)


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_rows_are_frames(tmp_path, rows, form):
    path = tmp_path / f"a.{form}"
    np.save(path, rows) if form == "npy" else np.savez(path, landmarks=rows)
    points, present = load_landmarks(path, 25)
    np.testing.assert_array_equal(points, rows)
    assert points.dtype == np.float32 and present == 1


def test_stated_rate_is_honoured(tmp_path, rows):
    np.savez(tmp_path / "a.npz", landmarks=rows, fps=50.0)
    points, _ = load_landmarks(tmp_path / "a.npz", 25)
    np.testing.assert_allclose(points, rows[::2], rtol=1e-6)
    np.savez(tmp_path / "b.npz", landmarks=rows, fps=12.5)
    points, _ = load_landmarks(tmp_path / "b.npz", 25)
    assert len(points) == 60
    np.testing.assert_allclose(points[1:-2:2], (rows[:-1] + rows[1:]) / 2, rtol=1e-5)


@pytest.mark.parametrize("hole", [np.nan, 0.0])
def test_rows_without_a_face_are_interpolated(tmp_path, rows, hole):
    holed = rows.copy()
    holed[[0, 10, 11, 29]] = hole
    np.save(tmp_path / "a.npy", holed)
    points, present = load_landmarks(tmp_path / "a.npy", 25)
    assert present == pytest.approx(26 / 30)
    np.testing.assert_allclose(points[10], rows[9] * 2 / 3 + rows[12] / 3, rtol=1e-5)
    np.testing.assert_array_equal(points[[0, 29]], rows[[1, 28]])
    np.testing.assert_array_equal(points[1:10], rows[1:10])


def test_bad_files(tmp_path):
    np.save(tmp_path / "shape.npy", np.zeros((3, 7, 2)))
    np.save(tmp_path / "flat.npy", np.zeros((5, 2)))
    np.save(tmp_path / "none.npy", np.full((3, 5, 2), np.nan))
    np.savez(tmp_path / "key.npz", points=np.zeros((3, 5, 2)))
    (tmp_path / "text.npy").write_text("hello")
    for name, reason in [
        ("shape.npy", r"\(T, 5, 2\) or \(T, 68, 2\)"),
        ("flat.npy", r"\(T, 5, 2\)"),
        ("none.npy", "no face in any row"),
        ("key.npz", "landmarks"),
        ("text.npy", "not a landmark file"),
        ("missing.npy", "not a landmark file"),
    ]:
        with pytest.raises(MediaError, match=reason) as caught:
            load_landmarks(tmp_path / name, 25)
        assert name in str(caught.value)
