"""A corpus through the pipeline: nothing stops it, nothing is done twice, nothing is silent."""

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import cv2
import numpy as np
import pytest

import speechattn
from speechattn.data.crops.roi import MouthCropper, RoiItem, RoiOptions, extract
from speechattn.data.crops.roi.crop import MEAN_FACE
from speechattn.data.crops.store import CropStore
from speechattn.errors import ConfigError, SpeechattnError

OPTIONS = RoiOptions(size=32, smoothing=3)


# Workers import the detector by its module's name: one that needs no package around it.
sys.path.insert(0, os.path.dirname(__file__))
from marker_detector import Marker, Unavailable, square_video  # noqa: E402


@pytest.fixture
def items(tmp_path) -> list[RoiItem]:
    found = [
        RoiItem(f"k{i}", square_video(tmp_path / f"{i}.mp4", (200 + i, 220, 210), 8 + 5 * i))
        for i in range(4)
    ]
    (tmp_path / "empty.mp4").write_bytes(b"")
    found.insert(1, RoiItem("dark", square_video(tmp_path / "dark.mp4", (0, 0, 0))))
    found.insert(3, RoiItem("empty", str(tmp_path / "empty.mp4")))
    found.insert(4, RoiItem("gone", str(tmp_path / "gone\tfile.mp4")))
    return found


def failures(folder) -> dict[str, str]:
    lines = (folder / "failures.tsv").read_text().splitlines()
    assert lines[0] == "key\tpath\treason"
    return {line.split("\t")[0]: line.split("\t")[-1] for line in lines[1:]}


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_what_it_can_and_lists_the_rest(tmp_path, items, workers):
    folder = tmp_path / "crops"
    summary = extract(items, folder, OPTIONS, workers, detector=Marker, progress=False)
    assert (summary.done, summary.skipped, summary.failed) == (4, 0, 3)
    assert summary.frames == 8 + 13 + 18 + 23
    store = CropStore(folder)
    assert set(store.keys()) == {"k0", "k1", "k2", "k3"}
    cropper = MouthCropper(OPTIONS, Marker())
    for item in items:
        if item.key in store:
            crop = cropper.crop(item.path)
            np.testing.assert_array_equal(store.read(item.key), crop.frames)
            assert store.info(item.key).fps == 25
    listed = failures(folder)
    assert set(listed) == {"dark", "empty", "gone"}
    assert "no face" in listed["dark"] and "empty" in listed["empty"]
    assert listed["gone"] == "no such file"
    sheet = cv2.imread(str(folder / "contact_sheet.png"), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape[0] == 4 * 32 and sheet.shape[1] > 10 * 32
    assert json.loads((folder / "roi.json").read_text())["size"] == 32


def test_runs_on_where_it_stopped(tmp_path, items):
    folder = tmp_path / "crops"
    extract(items[:3], folder, OPTIONS, 0, detector=Marker, progress=False)
    before = (folder / "crops-00000.bin").read_bytes()
    square_video(tmp_path / "dark.mp4", (220, 220, 220))  # what failed is tried again
    summary = extract(items, folder, OPTIONS, 0, detector=Marker, progress=False)
    assert (summary.done, summary.skipped, summary.failed) == (3, 2, 2)
    assert (folder / "crops-00000.bin").read_bytes().startswith(before)
    assert set(failures(folder)) == {"empty", "gone"}
    summary = extract(items, folder, OPTIONS, 2, detector=Marker, progress=False)
    assert (summary.done, summary.skipped, summary.failed) == (0, 5, 2)


def test_other_options_are_refused(tmp_path, items):
    folder = tmp_path / "crops"
    extract(items[:1], folder, OPTIONS, 0, detector=Marker, progress=False)
    with pytest.raises(ConfigError, match="smoothing was 3, is 5"):
        extract(items, folder, RoiOptions(size=32, smoothing=5), 0, detector=Marker, progress=False)
    with pytest.raises(ValueError, match="twice"):
        extract([items[0]] * 2, tmp_path / "other", OPTIONS, 0, detector=Marker, progress=False)


def test_a_video_that_kills_its_worker_is_a_failure(tmp_path, items):
    deadly = RoiItem("deadly", square_video(tmp_path / "deadly.mp4", (255, 0, 0)))
    items.insert(2, deadly)
    folder = tmp_path / "crops"
    summary = extract(items, folder, OPTIONS, 2, detector=Marker, progress=False)
    assert (summary.done, summary.failed) == (4, 4)
    assert "worker process died" in failures(folder)["deadly"]


def test_a_video_that_hangs_its_worker_is_a_failure(tmp_path, items, monkeypatch):
    monkeypatch.setattr("speechattn.data.crops.roi.workers._PATIENCE_UNKNOWN", 3.0)
    hanging = RoiItem("hanging", square_video(tmp_path / "hanging.mp4", (0, 0, 255)))
    folder = tmp_path / "crops"
    summary = extract([hanging, *items], folder, OPTIONS, 2, detector=Marker, progress=False)
    assert (summary.done, summary.failed) == (4, 4)
    assert "died or hung" in failures(folder)["hanging"]


def test_unexpected_errors_are_failures_too(tmp_path, items):
    class Broken:
        def detect(self, frame):
            raise RuntimeError("two\nlines")

    folder = tmp_path / "crops"
    summary = extract(items[:1], folder, OPTIONS, 0, detector=Broken, progress=False)
    assert summary.failed == 1 and "two\\nlines" in failures(folder)["k0"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_detector_that_cannot_be_made_stops_the_run(tmp_path, items, workers):
    with pytest.raises(ConfigError, match="pip install something"):
        extract(items, tmp_path / "crops", OPTIONS, workers, detector=Unavailable, progress=False)


def test_workers_that_do_not_start_are_told(tmp_path, items):
    class Local:  # no module has it
        def detect(self, frame):
            return []

    Local.__qualname__ = "Nowhere"
    with pytest.raises((SpeechattnError, AttributeError, pickle.PicklingError)):
        extract(items, tmp_path / "crops", OPTIONS, 1, detector=Local, progress=False)


def test_landmark_files_travel_with_the_item(tmp_path, items):
    rows = np.stack([MEAN_FACE / 112 * 40 + [20 + i, 10] for i in range(8)])
    np.savez(tmp_path / "k0.npz", landmarks=rows)
    item = RoiItem("k0", items[0].path, str(tmp_path / "k0.npz"))
    wrong = RoiItem("k1", items[2].path, str(tmp_path / "nothing.npz"))
    folder = tmp_path / "crops"
    extract([item, wrong], folder, OPTIONS, 0, progress=False)
    expected = MouthCropper(OPTIONS).crop(item.path, item.landmarks)
    np.testing.assert_array_equal(CropStore(folder).read("k0"), expected.frames)
    assert "nothing.npz" in failures(folder)["k1"]


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupt_leaves_a_store_to_go_on_with(tmp_path, workers):
    paths = [square_video(tmp_path / f"{i}.mp4", (200, 220, 210)) for i in range(40)]
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import signal, sys
            # A shell's background jobs, and some CI, start with SIGINT ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.path[:0] = sys.argv[1:3]
            from marker_detector import Marker
            from speechattn.data.crops.roi import RoiItem, RoiOptions, extract
            if __name__ == "__main__":
                items = [RoiItem(f"k{i}", path) for i, path in enumerate(sys.argv[5:])]
                options = RoiOptions(size=32, smoothing=3)
                workers = int(sys.argv[4])
                extract(items, sys.argv[3], options, workers, detector=Marker, progress=False)
            """
        )
    )
    root = os.path.dirname(os.path.dirname(speechattn.__file__))
    folder = tmp_path / "crops"
    command = [sys.executable, script, root, os.path.dirname(__file__), folder, workers, *paths]
    process = subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, "MARKER_SLEEP": "0.02"},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    index = folder / "index.jsonl"
    deadline = time.monotonic() + 120
    while not (index.exists() and index.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    error = process.communicate(timeout=90)[1].decode()
    assert process.returncode != 0 and "KeyboardInterrupt" in error
    done = len(CropStore(folder))
    assert 3 <= done < 40
    assert (folder / "contact_sheet.png").exists()
    items = [RoiItem(f"k{i}", path) for i, path in enumerate(paths)]
    summary = extract(items, folder, OPTIONS, 0, detector=Marker, progress=False)
    assert summary.skipped == done and summary.done == 40 - done
