"""The options of `speechattn roi` on a real face: a dry run, shards, merging, faces used again."""

import numpy as np
import pytest
from lhotse import CutSet
from lhotse.cut import MonoCut

from speechattn.cli import main
from speechattn.data.augment import CenterCrop
from speechattn.data.crops.store import CropStore


@pytest.fixture(scope="module")
def manifest(data_dir, tmp_path_factory):
    """Cuts of three clips, one twice under another name, and of a file that is missing."""
    videos = sorted((data_dir / "grid" / "video").glob("*.mp4"))[:2]
    if not videos:
        pytest.skip("needs the GRID clips of the shared test data")
    paths = [*videos, videos[0], data_dir / "grid" / "video" / "nowhere.mp4"]
    cuts = [MonoCut(f"c{i}", 0, 3.0, 0, custom={"video": str(p)}) for i, p in enumerate(paths)]
    path = tmp_path_factory.mktemp("manifest") / "cuts.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(path)
    return path


def run(manifest, output, *options) -> int:
    arguments = ["roi", str(manifest), "--output", str(output), "--workers", "0", *options]
    return main([*map(str, arguments)])


def test_shards_merge_and_scales(manifest, tmp_path, capsys, caplog, monkeypatch):
    config = tmp_path / "roi.yaml"
    config.write_text("roi: {scales: [48, 96, 128]}\n")
    crops = tmp_path / "crops"
    assert run(manifest, crops, "--config", config, "--dry-run", "--num-shards", "2") == 0
    said = capsys.readouterr().out
    assert said.startswith("4 videos, 12 s of video: about") and "with 2 workers" in said
    assert not crops.exists()
    for shard in (0, 1):
        shards = ("--num-shards", "2", "--shard", shard)
        assert run(manifest, crops, "--config", config, *shards) == 0
    caplog.clear()
    with caplog.at_level("INFO", logger="speechattn"):
        assert run(manifest, crops, "--merge") == 0
    assert "3 videos cropped, 1 failed" in caplog.text
    store = CropStore(crops)
    assert sorted(store) == ["c0", "c1", "c2"] and store.info("c0").height == 128
    # Again at the usual size, by the faces that were found: the detector is not to be made.
    monkeypatch.setattr("speechattn.data.crops.roi.mtcnn.MtcnnDetector.detect", None)
    monkeypatch.setattr("speechattn.data.crops.roi.mtcnn.MtcnnDetector.refine", None)
    assert run(manifest, tmp_path / "usual", "--faces", crops) == 0
    usual = CropStore(tmp_path / "usual")
    for key in usual:
        middle = CenterCrop(96)(store.read(key)).astype(int)
        assert np.abs(middle - usual.read(key)).max() <= 2


@pytest.mark.parametrize("shard", [-1, 2])
def test_a_shard_that_is_not_there(manifest, tmp_path, shard, capsys):
    assert run(manifest, tmp_path / "crops", "--num-shards", "2", "--shard", shard) == 1
    assert f"--shard {shard}" in capsys.readouterr().err
