"""Crops that wait on disk are those that were cut."""

import os
import tempfile

import av
import numpy as np
import pytest

from speechattn.data.crops.roi.crop_buffer import BLOCK, CropBuffer, SpillFile
from speechattn.data.crops.roi.cropper import MouthCropper
from speechattn.data.crops.roi.detector import Face
from speechattn.data.crops.roi.options import RoiOptions
from speechattn.data.crops.roi.track import Tracker
from speechattn.errors import SpeechattnError


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 6), dtype=np.uint8)


def filled(spill: SpillFile, crops: np.ndarray) -> CropBuffer:
    found = CropBuffer(spill)
    for crop in crops:
        found.append(crop)
    return found


@pytest.mark.parametrize("limit", [0, 36 * 10, 36 * BLOCK, 36 * 150, 1 << 20])
@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 5, 300])
def test_what_goes_in_comes_out(limit, count):
    expected = pictures(count)
    spill = SpillFile(limit)
    crops = filled(spill, expected)
    assert len(crops) == count
    np.testing.assert_array_equal(np.stack(list(crops)), expected)
    np.testing.assert_array_equal(np.stack(crops), expected)
    np.testing.assert_array_equal(np.concatenate(list(crops.blocks())), expected)
    np.testing.assert_array_equal(crops.array(), expected)
    np.testing.assert_array_equal(
        crops.array(2, 3), np.pad(expected, ((2, 3), (0, 0), (0, 0)), mode="edge")
    )
    pieces = list(crops.blocks(BLOCK + 2, 1))
    assert max(map(len, pieces)) <= max(BLOCK, len(crops._tail))
    np.testing.assert_array_equal(
        np.concatenate(pieces), np.pad(expected, ((BLOCK + 2, 1), (0, 0), (0, 0)), mode="edge")
    )
    for index in (0, count // 2, count - 1, -1, -count):
        np.testing.assert_array_equal(crops[index], expected[index])
    np.testing.assert_array_equal(crops[1:-1], expected[1:-1])
    with pytest.raises(IndexError):
        crops[count]
    # In memory up to the limit, and what does not make a block; the rest on disk, once.
    assert spill.in_memory + spill.on_disk == 36 * count
    assert spill.in_memory <= max(limit, 36 * BLOCK) + 36
    assert (spill.on_disk > 0) == (count >= BLOCK and 36 * count > limit)


def test_faces_share_a_file():
    one, two = pictures(200, 1), pictures(170, 2)
    spill = SpillFile(36 * 100)
    first, second = CropBuffer(spill), CropBuffer(spill)
    for i in range(200):
        first.append(one[i])
        if i < 170:
            second.append(two[i])
    np.testing.assert_array_equal(first.array(), one)
    np.testing.assert_array_equal(second.array(), two)
    assert spill.on_disk >= 36 * 4 * BLOCK


def test_a_video_in_pieces(tmp_path):
    """The cropper's stream is its crop, also where the face comes late and goes early."""

    class Late:
        def detect(self, frame):
            seen = 60 < frame.mean() < 190
            points = np.array([[30, 40], [60, 40], [45, 55], [33, 70], [57, 70]], dtype=np.float32)
            return [Face(np.array([20, 20, 70, 90], dtype=np.float32), 0.9, points)] * bool(seen)

    path = tmp_path / "late.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for i in range(250):
            picture = np.full((120, 160, 3), i, dtype=np.uint8)
            picture[40:80] //= 2
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    options = RoiOptions(size=16, max_gap=0.4)
    expected = MouthCropper(options, Late()).crop(path).frames
    pieces = list(MouthCropper(options, Late(), memory_limit=256 * 10).stream(path))
    np.testing.assert_array_equal(np.concatenate(pieces), expected)
    assert len(expected) == 250 and len(pieces) > 3


def test_a_short_video_needs_no_file(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    filled(SpillFile(), pictures(300))


def test_no_room(monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(SpeechattnError, match=r"No space left.*TMPDIR"):
        filled(SpillFile(0), pictures(300))


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    crops = filled(SpillFile(0), pictures(300))
    assert os.listdir(tmp_path) == [] and len(crops.array()) == 300


def follow(frames: int, **limit: int):
    points = np.array([[30, 40], [60, 40], [45, 55], [33, 70], [57, 70]], dtype=np.float32)
    rng = np.random.default_rng(0)
    tracker = Tracker(RoiOptions(size=16, smoothing=5, max_gap=0.4), 1, **limit)
    for i in range(frames):
        tracker.recent.append(rng.integers(0, 256, (100, 200), dtype=np.uint8))
        moved = points + 0.1 * i
        seen = [Face(np.array([20, 20, 70, 90], dtype=np.float32), 0.9, moved)]
        if i % 100 < 80:  # a second face, again and again
            seen.append(Face(np.array([120, 20, 170, 90], dtype=np.float32), 0.9, moved + [100, 0]))
        tracker.update(seen)
    return tracker, tracker.finish()[0]


def test_tracks():
    plain, kept = follow(400)
    spilled, track = follow(400, memory_limit=256 * 10)
    assert plain._spill.on_disk == 0 and spilled._spill.on_disk > 256 * 500
    # What stays is less than a block of each face that there was.
    assert spilled._spill.in_memory <= 256 * (BLOCK * len(spilled.tracks) + 10)
    np.testing.assert_array_equal(track.crops.array(), kept.crops.array())
    for ours, theirs in zip(spilled.tracks, plain.tracks, strict=True):
        np.testing.assert_array_equal(np.stack(ours.crops), np.stack(theirs.crops))
