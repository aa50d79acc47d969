"""The crop store: what goes in comes out, whatever interrupts the writer."""

import json
import multiprocessing
import os
import pickle

import numpy as np
import pytest

from speechattn.data.crops import blob_index, blobs
from speechattn.data.crops.store import CropInfo, CropStore, CropWriter
from speechattn.errors import SpeechattnError


def clip(frames: int, seed: int = 0, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    """A drifting gradient with noise, wrapping around 255 on the way."""
    rng = np.random.default_rng(seed)
    base = np.add.outer(np.arange(size[0]), np.arange(size[1]))[None] * 2
    drift = np.arange(frames)[:, None, None] * 3
    return ((base + drift + rng.integers(0, 9, (frames, *size))) % 256).astype(np.uint8)


@pytest.fixture
def clips() -> dict[str, np.ndarray]:
    lengths = {"a": 1, "b": 24, "c": 25, "d": 26, "s1_x/ü y": 75, "f": 130}
    return {key: clip(n, i) for i, (key, n) in enumerate(lengths.items())}


@pytest.fixture
def folder(tmp_path, clips):
    with CropWriter(tmp_path / "store") as writer:
        for key, frames in clips.items():
            writer.add(key, frames, 25.0, detected=0.5)
    return tmp_path / "store"


def test_round_trip(folder, clips):
    store = CropStore(folder)
    assert store.keys() == list(clips) and len(store) == len(clips)
    assert "a" in store and "z" not in store
    for key, frames in clips.items():
        np.testing.assert_array_equal(store.read(key), frames)
        assert store.info(key) == CropInfo(len(frames), 96, 96, 25.0, 0.5)


def test_slices_are_numpys(folder, clips):
    store = CropStore(folder)
    rng = np.random.default_rng(1)
    for key, frames in clips.items():
        bounds = [(0, None), (0, 0), (3, 2), (-4, None), (5, 10**6), (24, 26), (25, 50)]
        bounds += [tuple(rng.integers(0, len(frames) + 2, 2)) for _ in range(20)]
        for start, stop in bounds:
            got = store.read(key, start, stop)
            np.testing.assert_array_equal(got, frames[start:stop], err_msg=f"{key} {start}:{stop}")


def test_what_is_read_is_the_callers(folder, clips):
    store = CropStore(folder)
    frames = store.read("c")
    frames[:] = 0
    np.testing.assert_array_equal(store.read("c"), clips["c"])


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (88, 96), (112, 112)])
@pytest.mark.parametrize("kind", ["noise", "flat"])
def test_any_size_and_content(tmp_path, size, kind):
    shape = (30, *size)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    frames = noise if kind == "noise" else np.full(shape, 200, np.uint8)
    with CropWriter(tmp_path) as writer:
        writer.add("k", frames, 29.97)
    store = CropStore(tmp_path)
    np.testing.assert_array_equal(store.read("k"), frames)
    assert store.info("k").fps == 29.97


def test_natural_crops_get_smaller(tmp_path):
    frames = clip(75)
    with CropWriter(tmp_path) as writer:
        writer.add("k", frames, 25)
    assert (tmp_path / "crops-00000.bin").stat().st_size < 0.6 * frames.nbytes


def test_writer_continues(folder, clips):
    with CropWriter(folder) as writer:
        assert "b" in writer and len(writer) == len(clips)
        with pytest.raises(ValueError, match="already"):
            writer.add("b", clips["b"], 25.0)
        writer.add("new", clip(40, 9), 25.0)
    store = CropStore(folder)
    np.testing.assert_array_equal(store.read("new"), clip(40, 9))
    np.testing.assert_array_equal(store.read("f"), clips["f"])


@pytest.mark.parametrize("damage", ["blocks only", "half a line", "line without blocks"])
def test_half_written_clip_is_not_there(folder, clips, damage):
    index, shard = folder / "index.jsonl", folder / "crops-00000.bin"
    if damage == "blocks only":
        shard.write_bytes(shard.read_bytes() + b"left over")
    elif damage == "half a line":
        lines = index.read_bytes()
        last = lines.rindex(b"\n", 0, -1) + 1
        index.write_bytes(lines + lines[last:-10])
    else:  # a power cut: the index reached the disk, the end of the blocks did not
        shard.write_bytes(shard.read_bytes()[:-10])
        del clips["f"]
    assert CropStore(folder).keys() == list(clips)
    with CropWriter(folder) as writer:
        assert len(writer) == len(clips)
        writer.add("new", clip(60, 9), 25.0)
    store = CropStore(folder)
    assert store.keys() == [*clips, "new"]
    for key, frames in {**clips, "new": clip(60, 9)}.items():
        np.testing.assert_array_equal(store.read(key), frames)


def test_readable_while_it_is_written(tmp_path):
    with CropWriter(tmp_path) as writer:
        assert len(CropStore(tmp_path)) == 0
        writer.add("a", clip(30), 25)
        np.testing.assert_array_equal(CropStore(tmp_path).read("a"), clip(30))


def test_shards_roll_over(tmp_path, monkeypatch):
    monkeypatch.setattr(blobs, "SHARD_BYTES", 50_000)
    clips = {f"k{i}": clip(10 + i, i) for i in range(6)}
    for key, frames in clips.items():  # reopened each time
        with CropWriter(tmp_path) as writer:
            writer.add(key, frames, 25)
    assert len(list(tmp_path.glob("crops-*.bin"))) > 2
    store = CropStore(tmp_path)
    for key, frames in clips.items():
        np.testing.assert_array_equal(store.read(key), frames)


def test_one_writer(folder):
    with CropWriter(folder), pytest.raises(SpeechattnError, match="another process"):
        CropWriter(folder)
    CropWriter(folder).close()


def test_damage_is_told(folder):
    shard = folder / "crops-00000.bin"
    data = bytearray(shard.read_bytes())
    record = json.loads((folder / "index.jsonl").read_text().splitlines()[2])
    data[record["offset"] + 2000] ^= 0xFF
    shard.write_bytes(data)
    store = CropStore(folder)
    with pytest.raises(SpeechattnError, match="clip c is damaged in crops-00000.bin"):
        store.read("c")
    store.read("d")
    index = folder / "index.jsonl"
    index.write_bytes(b'{"key": "q"}\n' + index.read_bytes())
    with pytest.raises(SpeechattnError, match="line 1 is damaged"):
        CropStore(folder)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"7",
        b'{"key": []}',
        b'{"key": "q", "shard": 0, "offset": 0, "blocks": [1]}',
        b"{}, {}",
    ],
)
def test_the_line_that_is_damaged_is_named(folder, monkeypatch, line):
    monkeypatch.setattr(blob_index, "_LINES", 2)
    index = folder / "index.jsonl"
    lines = index.read_bytes().splitlines()
    index.write_bytes(b"\n".join([*lines[:3], line, *lines[3:]]) + b"\n")
    with pytest.raises(SpeechattnError, match="line 4 is damaged"):
        CropStore(folder)


def test_errors(tmp_path, folder):
    with pytest.raises(SpeechattnError, match="no crop store here"):
        CropStore(tmp_path / "nowhere")
    with pytest.raises(KeyError, match="'zz'"):
        CropStore(folder).read("zz")
    with CropWriter(tmp_path / "other") as writer:
        for wrong in (clip(3).astype(np.float32), clip(3)[0], clip(3)[:0]):
            with pytest.raises(ValueError, match="uint8"):
                writer.add("k", wrong, 25)


def _read_in_child(store, keys, connection):
    connection.send([store.read(key).sum(dtype=np.int64) for key in keys])


def test_survives_pickle_and_fork(folder, clips):
    store = CropStore(folder)
    store.read("a")  # opens the shard: its descriptor must not travel as a number
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.read("f"), clips["f"])
    keys = list(clips) * 5
    expected = [clips[key].sum(dtype=np.int64) for key in keys]
    fork = multiprocessing.get_context("fork")
    pipes = []
    for _ in range(2):
        here, there = fork.Pipe()
        child = fork.Process(target=_read_in_child, args=(store, keys, there))
        child.start()
        pipes.append((here, child))
    # The parent reads through the same descriptor at the same time.
    assert [store.read(key).sum(dtype=np.int64) for key in keys] == expected
    for here, child in pipes:
        assert here.poll(20) and here.recv() == expected
        child.join(20)


def test_closes_its_files(folder):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        CropStore(folder).read("a")
    store = CropStore(folder)
    store.read("a")
    store.close()
    store.read("a")
    store.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 1
