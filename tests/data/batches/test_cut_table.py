"""CutTable against Lhotse's own reading, on manifests of every kind and state."""

import gzip
import json
import logging
import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest
from lhotse import CutSet

from speechattn.data.batches.cut_table import CutTable, has_audio, id_hash
from speechattn.errors import ConfigError, SpeechattnError


@pytest.fixture
def cuts(tiny_corpus):
    """Some with odd ids, one mute, one of two parts."""
    found = list(CutSet.from_file(tiny_corpus.folder / "cuts_train.jsonl.gz"))
    found[1] = found[1].with_id("s0_中文 ñ")
    found[2].custom = {"has_audio": False}
    found[3] = found[3].append(found[4]).with_id("joined")
    found[5].recording = None
    return found


def write(cuts, path):
    CutSet.from_cuts(cuts).to_file(path)
    return path


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz", "cuts.json"])
def test_is_what_lhotse_reads(cuts, tmp_path, name):
    path = write(cuts, tmp_path / name)
    expected = list(CutSet.from_file(path))
    for _ in range(2):  # made, then found
        table = CutTable(path)
        assert len(table) == len(expected) == 8
        assert list(table) == expected
        assert [table[i] for i in (3, -1, 0)] == [expected[i] for i in (3, -1, 0)]
        assert list(table.ids()) == [cut.id for cut in expected]
        assert table.durations.tolist() == [cut.duration for cut in expected]
        assert table.has_audio.tolist() == [bool(has_audio(cut)) for cut in expected]
        assert table.has_audio.tolist() == [True, True, False, True, True, False, True, True]
        assert table.hashes.tolist() == [id_hash(cut.id) for cut in expected]
    with pytest.raises(IndexError):
        table[8]


def test_subsets(cuts, tmp_path):
    table = CutTable(write(cuts, tmp_path / "cuts.jsonl.gz"))
    assert list(table[2:6:2]) == [table[2], table[4]]
    some = table.subset(np.array([5, 1, 6]))
    assert list(some) == [table[5], table[1], table[6]]
    some = some.subset(np.array([True, False, True]))
    assert list(some.ids()) == [cuts[5].id, cuts[6].id]
    assert some.durations.tolist() == [cuts[5].duration, cuts[6].duration]
    assert len(table.subset(np.zeros(8, bool))) == 0
    # A caller may change what it was given.
    table[0].supervisions[0].text = "changed"
    assert table[0].supervisions[0].text != "changed"


def read_all(table, queue):
    queue.put([cut.id for cut in table])


def test_in_other_processes(cuts, tmp_path):
    table = CutTable(write(cuts, tmp_path / "cuts.jsonl.gz"))
    assert table[0].id == cuts[0].id  # the file is open
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=read_all, args=(table, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in workers:
            assert queue.get(timeout=60) == list(table.ids())
    finally:
        for worker in workers:
            worker.join()
    assert list(pickle.loads(pickle.dumps(table[1:3]))) == list(table[1:3])


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_made_again_when_the_manifest_changes(cuts, tmp_path, name, caplog):
    path = write(cuts[:3], tmp_path / name)
    with caplog.at_level(logging.INFO):
        old = CutTable(path)
        CutTable(path)
        assert caplog.text.count("looking through") == 1
        write(cuts[4:], path)
        os.utime(path, ns=(0, time.time_ns() - 10**12))  # older than the table
        new = CutTable(path)
        assert caplog.text.count("looking through") == 2
    assert [cut.id for cut in new] == [cut.id for cut in cuts[4:]]
    with pytest.raises(SpeechattnError, match="has changed"):
        list(old)


@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_a_damaged_table_is_made_again(cuts, tmp_path, damage):
    path = write(cuts, tmp_path / "cuts.jsonl.gz")
    CutTable(path)
    table = tmp_path / ".cuts.jsonl.gz.table"
    whole = table.read_bytes()
    table.write_bytes({"empty": b"", "cut": whole[:-5], "other": b"x" * 100}[damage])
    assert [cut.id for cut in CutTable(path)] == [cut.id for cut in cuts]
    assert table.read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == [table.name, path.name]


def test_a_folder_that_cannot_be_written(cuts, tmp_path, monkeypatch, caplog):
    """Root may write anywhere: the refusal is made up."""
    path = write(cuts, tmp_path / "cuts.jsonl.gz")
    import builtins

    real = builtins.open

    def refuse(file, mode="r", *args, **kwargs):
        if "w" in mode and str(file).startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", refuse)
    with caplog.at_level(logging.WARNING):
        table = CutTable(path)
    assert "Permission denied" in caplog.text
    some = pickle.loads(pickle.dumps(table[2:]))
    assert [cut.id for cut in some] == [cut.id for cut in cuts[2:]]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_blank_lines(cuts, tmp_path):
    for name, opener in (("a.jsonl", open), ("b.jsonl.gz", gzip.open)):
        with opener(tmp_path / name, "wt", encoding="utf-8") as file:
            for cut in cuts:
                file.write("\n" + json.dumps(cut.to_dict(), ensure_ascii=False) + "\n \n")
        assert list(CutTable(tmp_path / name)) == cuts


def test_what_is_wrong_is_said(cuts, tmp_path):
    with pytest.raises(ConfigError, match="no such manifest"):
        CutTable(tmp_path / "none.jsonl")
    path = write(cuts, tmp_path / "cuts.jsonl")
    lines = path.read_text().splitlines()
    for wrong in ('{"id": "x"', '{"id": "x", "type": "MonoCut"}', '{"a": 1}', "3"):
        path.write_text("\n".join([*lines[:2], wrong, *lines[3:]]))
        with pytest.raises(ConfigError, match="line 3 is not a Lhotse cut"):
            CutTable(path)
    short = write(cuts, tmp_path / "cuts.jsonl.gz")
    short.write_bytes(short.read_bytes()[:-40])
    with pytest.raises(ConfigError, match="cut short"):
        CutTable(short)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cuts.jsonl", "cuts.jsonl.gz"]
