"""A whole video through the cropper: the bytes are the same every time, by whatever way."""

import logging

import av
import cv2
import numpy as np
import pytest

from speechattn.data.crops.roi import Face, MouthCropper, RoiOptions
from speechattn.data.crops.roi.crop import MEAN_FACE
from speechattn.errors import MediaError, NoFaceError


def write(path, frames, rate=25):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return path


class Marker:
    """Finds the one bright square in a dark picture; a detector that cannot follow."""

    def __init__(self):
        self.calls = 0

    def detect(self, frame):
        self.calls += 1
        y, x = np.nonzero(frame.mean(axis=2) > 128)
        if len(x) < 20:
            return []
        box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], dtype=np.float32)
        points = MEAN_FACE / 112 * (box[2:] - box[:2]) + box[:2]
        return [Face(box, 1.0, points.astype(np.float32))]


@pytest.fixture
def square(tmp_path):
    frames = np.zeros((30, 120, 160, 3), np.uint8)
    for i in range(6, 26):
        frames[i, 30:90, 20 + 2 * i : 80 + 2 * i] = 220
    return write(tmp_path / "square.mp4", frames)


@pytest.fixture(scope="module")
def clip(data_dir):
    path = data_dir / "grid" / "video" / "bbas2p.mp4"
    if not path.exists():
        pytest.skip("needs the GRID clips of the shared test data")
    return path


def test_any_detector_serves(square):
    marker = Marker()
    crop = MouthCropper(RoiOptions(size=48, detect_every=2, smoothing=3), marker).crop(square)
    assert crop.frames.shape == (30, 48, 48) and crop.frames.dtype == np.uint8
    assert crop.landmarks.shape == (30, 5, 2) and crop.fps == 25
    assert marker.calls == 15 and crop.detected == pytest.approx(10 / 15)
    mouth = crop.landmarks[:, 3:].mean(axis=(1,))
    np.testing.assert_allclose(mouth[8:24, 0], 20 + 2 * np.arange(8, 24) + 30, atol=2)


def test_search_interval_of_a_detector_that_can_follow(square):
    class Follower(Marker):
        followed = 0

        def refine(self, frame, faces):
            self.followed += 1
            return super().detect(frame)

    follower = Follower()
    options = RoiOptions(size=48, detect_every=1, search_every=10, smoothing=3)
    crop = MouthCropper(options, follower).crop(square)
    searches = follower.calls - follower.followed
    # Six without a face, one that finds it, one more ten frames on, one that loses it, four after.
    assert 12 <= searches <= 15
    assert crop.detected == pytest.approx(20 / 30)


def test_crops_begin_and_end_with_the_video(square):
    options = RoiOptions(size=32, detect_every=1, smoothing=1, max_gap=0.08)
    crop = MouthCropper(options, Marker()).crop(square)
    assert len(crop.frames) == 30
    # Kept pictures reach back 2 + 1 frames; what is before repeats the first crop.
    for i in range(3):
        np.testing.assert_array_equal(crop.frames[i], crop.frames[0])
        np.testing.assert_array_equal(crop.landmarks[i], crop.landmarks[0])


def test_other_rates_give_crops_at_the_asked_rate(tmp_path):
    frames = np.zeros((60, 120, 160, 3), np.uint8)
    frames[:, 30:90, 40:100] = 220
    path = write(tmp_path / "fast.mp4", frames, rate=50)
    assert len(MouthCropper(RoiOptions(size=32), Marker()).crop(path).frames) == 30
    fast = MouthCropper(RoiOptions(size=32, fps=50), Marker()).crop(path)
    assert len(fast.frames) == 60 and fast.fps == 50


def test_no_face_is_an_error_with_a_name(tmp_path):
    path = write(tmp_path / "dark.mp4", np.zeros((10, 64, 64, 3), np.uint8))
    for detector in (Marker(), None):
        with pytest.raises(NoFaceError, match="no face found in 5 pictures of 10") as caught:
            MouthCropper(detector=detector).crop(path)
        assert caught.value.path == str(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(MediaError, match="truncated"):
        MouthCropper(detector=Marker()).crop(path)


def test_landmark_files_replace_the_detector(square, tmp_path):
    found = MouthCropper(RoiOptions(size=48, detect_every=1, smoothing=5), Marker()).crop(square)
    rows = np.full((30, 5, 2), np.nan, np.float32)
    for i in range(6, 26):
        box = np.array([20 + 2 * i, 30])
        rows[i] = MEAN_FACE / 112 * 60 + box
    np.savez(tmp_path / "square.npz", landmarks=rows)

    class Never:
        def detect(self, frame):
            raise AssertionError("not to be called")

    cropper = MouthCropper(RoiOptions(size=48, smoothing=5), Never())
    crop = cropper.crop(square, tmp_path / "square.npz")
    assert crop.detected == pytest.approx(20 / 30)
    # Coding blurs the square's edge by a pixel at most.
    assert np.abs(crop.landmarks - found.landmarks).max() < 1.5
    np.save(tmp_path / "short.npy", rows[:20])
    with pytest.raises(MediaError, match="20 rows for 30 frames"):
        cropper.crop(square, tmp_path / "short.npy")


def test_real_clip_gives_the_same_bytes_every_time(clip):
    crop = MouthCropper().crop(clip)
    assert crop.frames.shape == (75, 96, 96) and crop.detected == 1
    cropper = MouthCropper()
    cropper.crop(clip)  # a used cropper must not remember
    before = cv2.getNumThreads()
    cv2.setNumThreads(2 if before == 1 else 1)
    try:
        np.testing.assert_array_equal(cropper.crop(clip).frames, crop.frames)
    finally:
        cv2.setNumThreads(before)


def test_real_mouth_is_in_the_middle(clip):
    crop = MouthCropper().crop(clip)
    # Steady: the face moves by much less from frame to frame than the detector's own noise.
    step = np.abs(np.diff(crop.landmarks.mean(axis=1), axis=0)).max()
    assert step < 1.0
    # The line between the lips is the darkest row of a closed mouth (the clip begins with one).
    profile = crop.frames[:5, 36:62, 36:60].mean(axis=(0, 2))
    assert 44 <= 36 + int(profile.argmin()) <= 54


def test_coarser_looks_give_nearly_the_same_crop(clip):
    every = MouthCropper(RoiOptions(detect_every=1)).crop(clip).landmarks
    for step in (2, 4, 8):
        points = MouthCropper(RoiOptions(detect_every=step)).crop(clip).landmarks
        assert np.abs(points - every).max() < 3


def test_two_faces_are_logged(clip, tmp_path, caplog):
    from speechattn.data.media import iter_frames

    frames = np.stack(list(iter_frames(clip)))[:20]
    small = np.zeros_like(frames)
    for i, frame in enumerate(frames):
        small[i, 60:204, 90:270] = cv2.resize(frame, (180, 144), interpolation=cv2.INTER_AREA)
    path = write(tmp_path / "two.mp4", np.concatenate([small, frames], axis=2))
    with caplog.at_level(logging.DEBUG, logger="speechattn"):
        crop = MouthCropper().crop(path)
    assert (crop.landmarks[..., 0] > 360).all()  # both seen throughout: the larger
    assert "2 faces" in caplog.text
