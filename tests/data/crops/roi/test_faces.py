"""Faces are found once: other crops of the same videos need no detector."""

import os
import sys

import numpy as np
import pytest

from speechattn.data.crops.roi import Face, MouthCropper, RoiItem, RoiOptions, extract
from speechattn.data.crops.roi.cropper import StaleDetections
from speechattn.data.crops.roi.faces import FaceCache, decode_faces, encode_faces
from speechattn.data.crops.store import CropStore

sys.path.insert(0, os.path.dirname(__file__))
from marker_detector import Marker, square_video  # noqa: E402

OPTIONS = RoiOptions(size=32, smoothing=3)


@pytest.mark.parametrize("counts", [[], [0], [1], [0, 0, 2, 1, 0], [3] * 40])
def test_faces_come_back_to_the_bit(counts):
    rng = np.random.default_rng(len(counts))

    def face():
        values = rng.normal(size=15).astype(np.float32) * 300
        return Face(values[:4], float(np.float32(rng.random())), values[5:].reshape(5, 2))

    detections = [[face() for _ in range(count)] for count in counts]
    found = decode_faces(encode_faces(detections), len(detections))
    assert [len(faces) for faces in found] == counts
    for faces, others in zip(detections, found, strict=True):
        for one, other in zip(faces, others, strict=True):
            np.testing.assert_array_equal(one.box, other.box)
            np.testing.assert_array_equal(one.points, other.points)
            assert one.score == other.score and other.points.dtype == np.float32


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """How often a detector has been called, in whatever process."""
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.setenv("MARKER_LOG", str(log))
    return lambda: log.stat().st_size


@pytest.fixture
def items(tmp_path):
    found = [
        RoiItem(f"k{i}", square_video(tmp_path / f"{i}.mp4", frames=9 + 4 * i)) for i in range(3)
    ]
    return [*found, RoiItem("dark", square_video(tmp_path / "dark.mp4", (0, 0, 0)))]


@pytest.mark.parametrize("workers", [0, 2])
def test_other_crops_do_not_detect_again(tmp_path, items, calls, workers):
    extract(items, tmp_path / "a", OPTIONS, workers, detector=Marker, progress=False)
    detected = calls()
    assert detected == 5 + 7 + 9 + 6
    other = RoiOptions(size=48, smoothing=5, max_gap=0.5)
    # Through a third folder: what was taken over is kept there too.
    for source, target in (("a", "b"), ("b", "c")):
        faces = [tmp_path / source]
        summary = extract(
            items, tmp_path / target, other, workers, detector=Marker, progress=False, faces=faces
        )
        assert (summary.done, summary.failed, calls()) == (3, 1, detected)
    assert "no face found in 6 pictures of 12" in (tmp_path / "c/failures.tsv").read_text()
    store = CropStore(tmp_path / "c")
    for item in items[:3]:
        fresh = MouthCropper(other, Marker()).crop(item.path)
        np.testing.assert_array_equal(store.read(item.key), fresh.frames)
        assert store.info(item.key).detected == fresh.detected


def test_crops_thrown_away_are_made_again_without_detecting(tmp_path, items, calls):
    folder = tmp_path / "crops"
    extract(items, folder, OPTIONS, 0, detector=Marker, progress=False)
    detected = calls()
    (folder / "index.jsonl").unlink()
    larger = RoiOptions(size=64, smoothing=1)
    summary = extract(items, folder, larger, 0, detector=Marker, progress=False)
    assert summary.done == 3 and calls() == detected
    assert CropStore(folder).info("k0").height == 64


def test_other_rates_other_detectors_and_changed_files_detect_again(tmp_path, items, calls):
    class Other(Marker):
        pass

    faces = [tmp_path / "a"]
    extract(items[:1], faces[0], OPTIONS, 0, detector=Marker, progress=False)
    known = calls()
    for name, options, detector in (
        ("every", RoiOptions(size=32, smoothing=3, detect_every=3), Marker),
        ("rate", RoiOptions(size=32, smoothing=3, fps=20), Marker),
        ("other", OPTIONS, Other),
    ):
        extract(
            items[:1], tmp_path / name, options, 0, detector=detector, progress=False, faces=faces
        )
        assert calls() > known, name
        known = calls()
    square_video(items[0].path, frames=20)
    extract(
        items[:1], tmp_path / "changed", OPTIONS, 0, detector=Marker, progress=False, faces=faces
    )
    assert calls() == known + 10
    assert CropStore(tmp_path / "changed").info("k0").frames == 20
    # The newer faces take the place of the old ones.
    (tmp_path / "a/index.jsonl").unlink()
    extract(items[:1], faces[0], OPTIONS, 0, detector=Marker, progress=False)
    assert FaceCache(faces).get("k0").pictures == 10


def test_no_face_is_found_out_once(tmp_path, items, calls):
    for _ in range(2):
        extract(items[3:], tmp_path / "a", OPTIONS, 0, detector=Marker, progress=False)
        assert calls() == 6
    square_video(items[3].path, frames=20)
    assert extract(items[3:], tmp_path / "a", OPTIONS, 0, detector=Marker, progress=False).done == 1


def test_faces_of_another_number_of_pictures_are_not_used(tmp_path, items):
    cropper = MouthCropper(OPTIONS, Marker())
    detections = cropper.crop(items[0].path).detections
    for wrong in (detections[:-1], [*detections, []]):
        with pytest.raises(StaleDetections):
            cropper.crop(items[0].path, detections=wrong)


def test_landmark_files_leave_no_faces(tmp_path, items):
    np.save(tmp_path / "0.npy", np.random.default_rng(0).normal(size=(9, 5, 2)) + 30)
    item = RoiItem("k0", items[0].path, str(tmp_path / "0.npy"))
    extract([item], tmp_path / "a", OPTIONS, 0, detector=Marker, progress=False)
    assert FaceCache([tmp_path / "a"]).get("k0") is None
    assert FaceCache([tmp_path / "nowhere"]).get("k0") is None
