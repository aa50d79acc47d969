"""Parts of a store are one store, before and after they are merged, whatever interrupts that."""

import os
import shutil

import numpy as np
import pytest

from speechattn.data.crops import blobs
from speechattn.data.crops.blobs import BlobStore, BlobWriter, Layout, merge_parts, part_name
from speechattn.errors import SpeechattnError

LAYOUT = Layout("things.jsonl", "things", ("weight", "age"), "thing store")


def content(i: int) -> list[bytes]:
    rng = np.random.default_rng(i)
    return [rng.bytes(int(n)) for n in rng.integers(0, 4000, i % 4)]


def add(writer: BlobWriter, i: int, **more) -> None:
    writer.add_blocks(
        f"k{i}", content(i), {"weight": i / 8, "age": 2**40 + i}, note=f"n{i}" * (i % 2), **more
    )


def check(store: BlobStore, numbers) -> None:
    assert sorted(store) == sorted(f"k{i}" for i in numbers)
    for i in numbers:
        key, expected = f"k{i}", content(i)
        assert store.blocks(key) == expected
        assert store.blocks(key, 1, 2) == expected[1:2]
        assert (store.number(key, "weight"), store.number(key, "age")) == (i / 8, 2**40 + i)
        assert store.note(key) == f"n{i}" * (i % 2)


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Three parts of several files each, one with an entry that the common folder has too."""
    monkeypatch.setattr(blobs, "SHARD_BYTES", 10_000)
    with BlobWriter(tmp_path, LAYOUT) as writer:
        add(writer, 0)
        add(writer, 7)
    for shard in range(3):
        with BlobWriter(tmp_path / part_name(shard, 3), LAYOUT) as writer:
            for i in range(3 + shard, 40, 3):
                add(writer, i)
    assert len(list(tmp_path.glob("*/things-*.bin"))) > 6
    return tmp_path


ALL = [0, *range(3, 40)]


def test_parts_are_read_as_one(parts):
    check(BlobStore(parts, LAYOUT), ALL)


def test_merged_they_are_the_same(parts):
    (parts / part_name(1, 3) / "other.txt").write_text("not ours")
    assert merge_parts(parts, LAYOUT) == len(ALL) - 2
    assert not list(parts.glob("shard-*/things*"))
    assert (parts / part_name(1, 3) / "other.txt").exists()
    check(BlobStore(parts, LAYOUT), ALL)
    assert merge_parts(parts, LAYOUT) == 0
    with BlobWriter(parts, LAYOUT) as writer:
        for i in range(40, 60):
            add(writer, i)
    check(BlobStore(parts, LAYOUT), [*ALL, *range(40, 60)])


@pytest.mark.parametrize("step", range(30))
def test_a_merge_killed_anywhere_is_done_by_another(parts, monkeypatch, step):
    calls = 0

    class Killed(BaseException):
        pass

    def counted(function):
        def run(*arguments, **more):
            nonlocal calls
            calls += 1
            if calls > step:
                raise Killed
            return function(*arguments, **more)

        return run

    with monkeypatch.context() as patch:
        for name in ("link", "replace", "unlink"):
            patch.setattr(os, name, counted(getattr(os, name)))
        patch.setattr(blobs.Path, "unlink", counted(blobs.Path.unlink))
        try:
            merge_parts(parts, LAYOUT)
        except Killed:
            pass
        else:
            assert step > 20  # all of it was tried
    check(BlobStore(parts, LAYOUT), ALL)
    # Somebody may go on writing before it is merged, past where links were left.
    with BlobWriter(parts, LAYOUT) as writer:
        for i in range(40, 60):
            add(writer, i)
    check(BlobStore(parts, LAYOUT), [*ALL, *range(40, 60)])
    merge_parts(parts, LAYOUT)
    check(BlobStore(parts, LAYOUT), [*ALL, *range(40, 60)])


def test_without_links_data_is_copied(parts, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    merge_parts(parts, LAYOUT)
    check(BlobStore(parts, LAYOUT), ALL)


def test_a_part_that_is_being_written_is_not_merged(parts):
    with (
        BlobWriter(parts / part_name(2, 3), LAYOUT),
        pytest.raises(SpeechattnError, match="another process"),
    ):
        merge_parts(parts, LAYOUT)
    check(BlobStore(parts, LAYOUT), ALL)


def test_replaced_entries(tmp_path):
    for _ in range(2):
        with BlobWriter(tmp_path / part_name(0, 1), LAYOUT) as writer:
            add(writer, 3, replace=True)
            writer.add_blocks("k5", [b"old"], {"weight": 0, "age": 0}, note="old", replace=True)
            add(writer, 5, replace=True)
    check(BlobStore(tmp_path, LAYOUT), [3, 5])
    merge_parts(tmp_path, LAYOUT)
    check(BlobStore(tmp_path, LAYOUT), [3, 5])
    with BlobWriter(tmp_path, LAYOUT) as writer, pytest.raises(ValueError, match="already"):
        add(writer, 3)


def test_an_index_that_is_ahead_of_its_blocks_in_one_part(parts):
    files = sorted((parts / part_name(1, 3)).glob("things-*.bin"))
    files[-1].write_bytes(files[-1].read_bytes()[:-5])
    store = BlobStore(parts, LAYOUT)
    assert 0 < len(ALL) - len(store) < 6
    check(store, [int(key[1:]) for key in store])


def test_no_store(tmp_path):
    with pytest.raises(SpeechattnError, match="no thing store here"):
        BlobStore(tmp_path, LAYOUT)
    shutil.rmtree(tmp_path)
    assert merge_parts(tmp_path, LAYOUT) == 0
