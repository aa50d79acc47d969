"""The same crops on Ray as without it."""

import os
import sys

import numpy as np
import pytest

from speechattn.data.crops.roi import RoiItem, RoiOptions, extract
from speechattn.data.crops.roi.on_ray import extract_on_ray
from speechattn.data.crops.store import CropStore
from speechattn.errors import ConfigError

sys.path.insert(0, os.path.dirname(__file__))
from marker_detector import Marker, square_video  # noqa: E402

OPTIONS = RoiOptions(size=32, smoothing=3)


@pytest.fixture
def items(tmp_path):
    videos = [square_video(tmp_path / f"{i}.mp4", frames=8 + i) for i in range(8)]
    items = [RoiItem(f"k{i}", path) for i, path in enumerate(videos)]
    return [*items, RoiItem("deadly", square_video(tmp_path / "deadly.mp4", (255, 0, 0)))]


def test_ray_missing_is_told(items, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install"):
        extract_on_ray(items, tmp_path / "crops", OPTIONS)


@pytest.mark.slow
def test_ray_makes_the_same_crops(items, tmp_path):
    ray = pytest.importorskip("ray")
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    try:
        folder = tmp_path / "crops"
        merged = extract_on_ray(items, folder, OPTIONS, 1, detector=Marker, num_shards=4)
        again = extract_on_ray(items, folder, OPTIONS, 1, detector=Marker, num_shards=3)
    finally:
        ray.shutdown()
    assert (merged.done, merged.failed, merged.missing) == (8, 1, 0) and again == merged
    assert "worker process died or hung" in (folder / "failures.tsv").read_text()
    extract(items[:8], tmp_path / "here", OPTIONS, 0, detector=Marker, progress=False)
    store, here = CropStore(folder), CropStore(tmp_path / "here")
    for key in here:
        np.testing.assert_array_equal(store.read(key), here.read(key))
