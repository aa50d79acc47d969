"""Which face is taken, and where it is said to be between the frames that were looked at."""

import numpy as np
import pytest

from speechattn.data.crops.roi.choice import choose
from speechattn.data.crops.roi.crop import MEAN_FACE, crop_transform, warp
from speechattn.data.crops.roi.detector import Face, overlap
from speechattn.data.crops.roi.options import RoiOptions
from speechattn.data.crops.roi.track import Tracker


def face(x: float, y: float, size: float = 100.0) -> Face:
    box = np.array([x, y, x + size, y + size], dtype=np.float32)
    points = (MEAN_FACE / 112 * size + [x, y]).astype(np.float32)
    return Face(box, 0.9, points)


def picture(index: int) -> np.ndarray:
    """Every frame differs from every other."""
    rng = np.random.default_rng(index)
    return rng.integers(0, 256, (240, 320), dtype=np.uint8)


def run(frames: int, faces_at, options: RoiOptions, every: int = 1):
    """Feed `frames` pictures; `faces_at(i)` are the faces in picture i."""
    tracker = Tracker(options, every)
    for i in range(frames):
        tracker.recent.append(picture(i))
        if i % every == 0:
            tracker.update(faces_at(i))
    tracks = tracker.finish()
    return tracker, choose(tracks, options.tie)[0] if tracks else None


def reference(points: np.ndarray, smoothing: int, options: RoiOptions) -> tuple[list, list]:
    """Crops and points in one go over the whole clip, from points known in every frame."""
    half = smoothing // 2
    padded = np.concatenate([points[:1]] * half + [points] + [points[-1:]] * half)
    smooth = [padded[i : i + smoothing].mean(axis=0) for i in range(len(points))]
    crops = [
        warp(picture(i), crop_transform(p, options.size, options.mouth_width), options.size)
        for i, p in enumerate(smooth)
    ]
    return crops, smooth


def test_overlap_is_intersection_over_union():
    a, b = np.array([0, 0, 10, 10.0]), np.array([5, 0, 15, 10.0])
    assert overlap(a, b) == pytest.approx(50 / 150)
    assert overlap(a, a) == 1 and overlap(a, a + 20) == 0
    assert overlap(a, np.array([3, 3, 3, 3.0])) == 0


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("smoothing", [1, 5, 13])
@pytest.mark.parametrize("frames", [1, 2, 11, 60])
def test_streaming_equals_the_whole_clip_at_once(every, smoothing, frames):
    options = RoiOptions(size=16, smoothing=smoothing, fps=25)
    path = np.cumsum(np.random.default_rng(0).normal(size=(frames, 2)) * 2, axis=0) + 60
    tracker, track = run(frames, lambda i: [face(*path[i])], options, every)
    seen = np.arange(0, frames, every)
    at_seen = np.stack([face(*path[i]).points for i in seen]).reshape(len(seen), -1)
    columns = [np.interp(np.arange(frames), seen, c) for c in at_seen.T]
    points = np.stack(columns, axis=1).reshape(frames, 5, 2)
    crops, smooth = reference(points, smoothing, options)
    assert len(tracker.tracks) == 1 and (track.start, track.end) == (0, frames)
    np.testing.assert_allclose(track.landmarks, smooth, atol=1e-3)
    np.testing.assert_allclose(np.stack(track.crops), np.stack(crops), atol=12)
    assert track.seen == len(seen)


def test_gap_is_bridged():
    options = RoiOptions(size=16, smoothing=3, max_gap=0.4)  # 10 frames
    hidden = set(range(20, 29))
    _, track = run(60, lambda i: [] if i in hidden else [face(50 + i, 60)], options)
    assert track.seen == 51 and track.end == 60
    expected = [face(50 + i, 60).points for i in range(2, 58)]
    np.testing.assert_allclose(track.landmarks[2:58], expected, atol=1e-3)


def test_a_longer_gap_begins_another_track():
    options = RoiOptions(size=16, smoothing=3, max_gap=0.4)
    hidden = set(range(20, 35))
    tracker, track = run(80, lambda i: [] if i in hidden else [face(50, 60)], options)
    assert len(tracker.tracks) == 2
    # The later one was seen longer; it is cropped back as far as the pictures were kept.
    assert track.seen == 45 and track.start <= 35 - 10 and track.end == 80
    lost = tracker.tracks[0]
    assert (lost.start, lost.seen) == (0, 20) and 20 <= lost.end <= 35


def test_longest_seen_wins_over_larger():
    options = RoiOptions(size=16)

    def faces(i):
        long, large = face(10, 10, 60), face(150, 60, 150)
        return [large, long] if i < 40 else [long]

    tracker, track = run(80, faces, options)
    assert len(tracker.tracks) == 2 and track.seen == 80
    assert track.area == pytest.approx(3600)


@pytest.mark.parametrize("missed, winner", [(0, 150), (6, 150), (30, 60)])
def test_larger_wins_among_those_seen_nearly_as_long(missed, winner):
    def faces(i):
        small, large = face(10, 10, 60), face(150, 60, 150)
        return [small] if i < missed else [small, large]

    _, track = run(80, faces, RoiOptions(size=16, tie=0.9))
    assert np.sqrt(track.area) == pytest.approx(winner)


def test_faces_that_pass_each_other_keep_their_tracks():
    # Best overlaps are linked first, whatever the order of detection.
    def faces(i):
        pair = [face(20 + i, 20, 80), face(150 - i, 60, 90)]
        return pair if i % 2 else pair[::-1]

    tracker, _ = run(40, faces, RoiOptions(size=16))
    assert [t.seen for t in tracker.tracks] == [40, 40]
    assert sorted(round(t.area) for t in tracker.tracks) == [6400, 8100]


def test_memory_does_not_grow_with_length():
    options = RoiOptions(size=16, smoothing=13, max_gap=1.0)
    tracker = Tracker(options, 2)
    kept = []
    for i in range(300):
        tracker.recent.append(np.zeros((20, 20), np.uint8))
        if i % 2 == 0:
            tracker.update([] if i % 50 > 30 else [face(5, 5, 10)])
        kept.append(tracker.recent.end - tracker.recent.start)
    assert max(kept) == kept[-1] == 25 + 2 + 6 + 1


def test_no_face():
    tracker, track = run(10, lambda i: [], RoiOptions())
    assert track is None and tracker.tracks == []


@pytest.mark.parametrize("field, value", [("size", 0), ("smoothing", 4), ("detect_every", -1)])
def test_options_are_checked(field, value):
    with pytest.raises(ValueError, match=field):
        RoiOptions(**{field: value})
