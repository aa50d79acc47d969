"""Jobs of a cluster: each does its part, together they do what one run does, whatever is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter

import numpy as np
import pytest

import speechattn
from speechattn.data.crops.blobs import part_name
from speechattn.data.crops.roi import RoiItem, RoiOptions, estimate, extract, merge_shards
from speechattn.data.crops.roi.estimation import SAMPLE, estimate_run, spread_first
from speechattn.data.crops.roi.shards import shard_items, shard_of
from speechattn.data.crops.roi.workers import Outcome
from speechattn.data.crops.store import CropStore, encode
from speechattn.errors import ConfigError, SpeechattnError

sys.path.insert(0, os.path.dirname(__file__))
from marker_detector import Marker, square_video  # noqa: E402

OPTIONS = RoiOptions(size=32, smoothing=3)
ROOT = os.path.dirname(os.path.dirname(speechattn.__file__))


def content(folder) -> dict[str, bytes]:
    store = CropStore(folder)
    return {key: store.read(key).tobytes() for key in store}


def rows(path) -> set[str]:
    return set(path.read_text(encoding="utf-8").splitlines())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Items, good and bad, and the folder that one run makes of them."""
    folder = tmp_path_factory.mktemp("corpus")
    items = []
    for i in range(24):
        name = f"新闻 {i}" if i % 2 else f"n{i:03d}"
        items.append(RoiItem(f"news/{name}", square_video(folder / f"{name}.mp4", frames=6 + i)))
    items.append(RoiItem("dark", square_video(folder / "dark.mp4", (0, 0, 0))))
    items.append(RoiItem("fast", square_video(folder / "fast.mp4", rate=50)))
    whole = (folder / "n000.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.mp4").write_bytes(b"")
    items += [RoiItem(key, str(folder / f"{key}.mp4")) for key in ("cut", "zero", "gone")]
    extract(items, folder / "crops", OPTIONS, 0, detector=Marker, progress=False)
    return items, folder / "crops"


def test_every_bad_file_is_listed_with_its_reason(corpus):
    _, folder = corpus
    reasons = {line.split("\t")[0]: line.split("\t")[2] for line in rows(folder / "failures.tsv")}
    assert "no face found" in reasons["dark"] and "truncated" in reasons["cut"]
    assert "0 bytes" in reasons["zero"] and reasons["gone"] == "no such file"
    assert len(reasons) == 5 and len(CropStore(folder)) == 25
    notes = rows(folder / "notes.tsv")
    assert len(notes) == 2 and any("fast" in n and "from 50 to 25 fps" in n for n in notes)


def test_shards_are_a_partition_that_stays():
    items = [RoiItem(f"k{i}", "") for i in range(2000)]
    for count in (1, 3, 16):
        parts = [shard_items(items, count, i) for i in range(count)]
        assert Counter(item.key for part in parts for item in part) == Counter(
            item.key for item in items
        )
        assert min(map(len, parts)) > 0.7 * 2000 / count
    # Jobs on machines of other makes and times must agree.
    assert [shard_of(key, 16) for key in ("n001", "新闻 1")] == [5, 6]
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="shards are 0 to 2"):
            shard_items(items, 3, wrong)


def test_shards_together_are_one_run(corpus, tmp_path):
    items, whole = corpus
    totals = Counter()
    for shard in (2, 0, 1):  # in any order
        summary = extract(
            items, tmp_path, OPTIONS, 0, detector=Marker, progress=False, num_shards=3, shard=shard
        )
        totals.update(done=summary.done, failed=summary.failed)
    assert totals == {"done": 25, "failed": 4}
    assert content(tmp_path) == content(whole)  # readable before it is merged
    merged = merge_shards(items, tmp_path)
    assert (merged.done, merged.failed, merged.missing) == (25, 4, 0)
    assert content(tmp_path) == content(whole)
    for name in ("failures.tsv", "notes.tsv"):
        assert rows(tmp_path / name) == rows(whole / name)
    assert json.loads((tmp_path / "roi.json").read_text())["size"] == 32
    assert (tmp_path / "contact_sheet.png").exists() and not list(tmp_path.glob("shard-*"))
    assert merge_shards(items, tmp_path) == merged
    # Another number of jobs finds everything done, and the faces of what failed are known.
    for shard in range(2):
        again = extract(
            items, tmp_path, OPTIONS, 0, detector=Marker, progress=False, num_shards=2, shard=shard
        )
        assert again.done == 0


def test_a_job_that_never_ran_is_told_and_made_up_for(corpus, tmp_path):
    items, whole = corpus
    for shard in (0, 2):
        extract(
            items, tmp_path, OPTIONS, 0, detector=Marker, progress=False, num_shards=3, shard=shard
        )
    lost = shard_items(items, 3, 1)
    assert merge_shards(items, tmp_path).missing == len(lost)
    summary = extract(items, tmp_path, OPTIONS, 0, detector=Marker, progress=False)
    assert summary.skipped == 25 - summary.done and content(tmp_path) == content(whole)
    assert rows(tmp_path / "failures.tsv") == rows(whole / "failures.tsv")


def test_shards_of_other_options_are_refused(corpus, tmp_path):
    items, _ = corpus
    extract(items, tmp_path, OPTIONS, 0, detector=Marker, progress=False, num_shards=3, shard=0)
    with pytest.raises(ConfigError, match="smoothing was 3, is 5"):
        other = RoiOptions(size=32, smoothing=5)
        extract(items, tmp_path, other, 0, detector=Marker, progress=False, num_shards=3, shard=1)
    with pytest.raises(SpeechattnError, match="neither crops nor shards"):
        merge_shards(items, tmp_path / "elsewhere")


SCRIPT = textwrap.dedent(
    """
    import json, sys
    sys.path[:0] = sys.argv[1:3]
    from marker_detector import Marker
    from speechattn.data.crops.roi import RoiItem, RoiOptions, extract
    if __name__ == "__main__":
        items = [RoiItem(*pair) for pair in json.loads(sys.argv[4])]
        options = RoiOptions(size=32, smoothing=3)
        shard = None if sys.argv[6] == "all" else int(sys.argv[6])
        extract(items, sys.argv[3], options, int(sys.argv[5]), detector=Marker, progress=False,
                num_shards=2, shard=shard)
    """
)


@pytest.mark.parametrize(
    "workers, shard, kills",
    [
        (2, "all", 2),
        pytest.param(0, "all", 40, marks=pytest.mark.slow),
        pytest.param(2, "all", 40, marks=pytest.mark.slow),
        pytest.param(2, "1", 40, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_it_goes_on(corpus, tmp_path, workers, shard, kills):
    """SIGKILL to the whole process group, again and again, until a run gets through."""
    items, whole = corpus
    (tmp_path / "run.py").write_text(SCRIPT)
    pairs = json.dumps([(item.key, item.path) for item in items])
    folder = tmp_path / "crops"
    arguments = [tmp_path / "run.py", ROOT, os.path.dirname(__file__), folder, pairs]
    command = [str(part) for part in (sys.executable, *arguments, workers, shard)]
    index = folder / "index.jsonl"
    if shard != "all":
        index = folder / part_name(int(shard), 2) / "index.jsonl"
    chance = random.Random(workers)
    killed, counts = 0, [0]
    code = None
    while code != 0:
        process = subprocess.Popen(
            command, env={**os.environ, "MARKER_SLEEP": "0.02"}, start_new_session=True
        )
        # From the moment that it gets on with the work: else it would die in its imports.
        deadline = time.monotonic() + 60
        while killed < kills and process.poll() is None and time.monotonic() < deadline:
            if index.exists() and index.read_bytes().count(b"\n") > counts[-1]:
                break
            time.sleep(0.01)
        if killed < kills:
            time.sleep(chance.uniform(0, 0.5))
        if killed < kills and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        code = process.wait()
        counts.append(len(CropStore(folder)))
        assert counts[-1] >= counts[-2]  # nothing is lost
        assert code in (0, -signal.SIGKILL)
    assert killed >= 1
    expected = content(whole)
    if shard != "all":
        mine = {item.key for item in shard_items(items, 2, int(shard))}
        expected = {key: crops for key, crops in expected.items() if key in mine}
    else:
        assert rows(folder / "failures.tsv") == rows(whole / "failures.tsv")
        assert rows(folder / "notes.tsv") == rows(whole / "notes.tsv")
    assert content(folder) == expected


# ------------------------------------------------------------------------------------ estimates


def test_the_first_clips_are_from_all_over():
    items = list(range(100))
    order = spread_first(items, 5)
    assert order[:5] == [10, 30, 50, 70, 90] and sorted(order) == items
    assert order[5:] == sorted(order[5:])
    assert spread_first(items[:4], 5) == [0, 1, 2, 3]
    for count in range(1, 40):
        assert sorted(spread_first(items[:count], 12)) == items[:count]


def test_estimate_by_hand(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (50, 32, 32), dtype=np.uint8)
    crop = encode(noise, 25)
    outcomes = [Outcome(crop, seconds=1.0)] * 3 + [Outcome(reason="bad", seconds=0.5)]
    items = [RoiItem(str(i), "", seconds=2.0) for i in range(1000)]
    found = estimate_run(items, outcomes, 25, workers=4, folder=tmp_path / "not" / "there")
    # 3.5 s for three of four clips; 1000 clips, 4 workers.
    assert found.seconds == pytest.approx(3.5 / 4 * 1000 / 4)
    assert found.disk == pytest.approx(0.75 * 1000 * sum(map(len, crop.blocks)))
    assert found.video_seconds == 2000 and found.measured == 4 and found.free > 0
    unknown = estimate_run([RoiItem("a", "")] * 1000, outcomes, 25, workers=4, folder=tmp_path)
    assert unknown.seconds == pytest.approx(found.seconds) and unknown.disk == found.disk
    assert "1000 videos, 33 min of video: about 4 min with 4 workers" in str(found)
    assert estimate_run(items, outcomes[3:], 25, workers=4, folder=tmp_path) is None


def test_a_dry_run_keeps_nothing(corpus, tmp_path):
    items, whole = corpus
    found = estimate(items, tmp_path / "crops", OPTIONS, 0, detector=Marker)
    assert not (tmp_path / "crops").exists()
    assert found.clips == len(items) and found.measured == SAMPLE
    size = sum(path.stat().st_size for path in whole.glob("*.bin"))  # crops and faces
    assert 0.7 * size < found.disk < 1.4 * size
    assert estimate(items, whole, OPTIONS, 0, detector=Marker) is None  # only failures are left
    with pytest.raises(ConfigError):
        estimate(items, whole, RoiOptions(size=48), 0, detector=Marker)


def test_a_full_disk_is_told_before_it_is_full(corpus, tmp_path, monkeypatch, caplog):
    items, _ = corpus
    with caplog.at_level("INFO", logger="speechattn"):
        extract(items, tmp_path / "fits", OPTIONS, 0, detector=Marker, progress=False)
    assert "of disk (" in caplog.text and f"measured on {SAMPLE} of them" in caplog.text
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("speechattn.data.crops.roi.estimation.shutil.disk_usage", lambda _: usage)
    with pytest.raises(SpeechattnError, match="the disk is too small"):
        extract(items, tmp_path / "full", OPTIONS, 0, detector=Marker, progress=False)
    assert len(CropStore(tmp_path / "full")) > 5
