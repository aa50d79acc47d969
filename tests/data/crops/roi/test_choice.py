"""Which face is taken where several could be the speaker, and what is said about it."""

import numpy as np
import pytest

from speechattn.data.crops.roi import Face, MouthCropper, RoiOptions
from speechattn.data.crops.roi.choice import choose
from speechattn.data.crops.roi.crop import MEAN_FACE
from speechattn.data.crops.roi.track import Tracker


def face(x: float, size: float) -> Face:
    box = np.array([x, 40, x + size, 40 + size], dtype=np.float32)
    return Face(box, 0.9, (MEAN_FACE / 112 * size + [x, 40]).astype(np.float32))


def tracks(faces, talking: slice = slice(0), frames: int = 30):
    """Tracks of steady faces, each from a frame on; some columns of the pictures flicker."""
    tracker = Tracker(RoiOptions(size=16, smoothing=1), 1)
    still = np.random.default_rng(0).integers(0, 200, (200, 400), dtype=np.uint8)
    for i in range(frames):
        picture = still.copy()
        picture[:, talking] += np.uint8(30 * (i % 2))
        tracker.recent.append(picture)
        tracker.update([f for f, first in faces if i >= first])
    tracker.finish()
    return tracker.tracks


def test_one_face_needs_no_word():
    found = tracks([(face(20, 100), 0)])
    assert choose(found, 0.9) == (found[0], "")
    found = tracks([(face(20, 100), 0), (face(250, 100), 20)])
    assert choose(found, 0.9) == (found[0], "")  # the other is seen a third of the time


@pytest.mark.parametrize("order", [1, -1])
def test_the_larger_is_taken_and_told(order):
    found = tracks([(face(20, 120), 0), (face(250, 100), 0)][::order], slice(200, None))
    track, note = choose(found, 0.9)
    assert np.sqrt(track.area) == pytest.approx(120)
    assert note == "2 faces seen as long, took the largest"


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("order", [1, -1])
def test_of_equals_the_one_that_talks(left, order):
    # A portrait beside the speaker, a little larger.
    pair = [(face(20, 100 if left else 102), 0), (face(250, 102 if left else 100), 0)]
    found = tracks(pair[::order], slice(200) if left else slice(200, None))
    track, note = choose(found, 0.9)
    assert (track.box[0] < 200) == left
    assert "took the one whose mouth moves most (30.0 against 0.0" in note


def test_notes_reach_the_crop(tmp_path):
    import av

    class Two:
        def detect(self, frame):
            return [face(10, 60), face(90, 60)] if frame.mean() > 60 else []

    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=50)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for i in range(40):
            frame = np.full((120, 160, 3), 200 if i < 12 else 20, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    crop = MouthCropper(RoiOptions(size=16, smoothing=1), Two()).crop(path)
    assert crop.detected == pytest.approx(0.3) and len(crop.frames) == 20
    said, seldom, rate = crop.note.split("; ")
    assert said.startswith("2 faces seen as long and as large")
    assert seldom == "face found in 30% of the pictures looked at"
    assert rate == "resampled from 50 to 25 fps"
