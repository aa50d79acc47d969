"""write_manifests: a run that goes on where another stopped."""

import threading

import pytest
from lhotse import CutSet

from speechattn.data.corpora import manifests, media, prepare_tsv, read_summary
from speechattn.data.corpora.manifests import Utterance, utterance_id, write_manifests
from speechattn.data.corpora.tsv import read_table
from speechattn.errors import SpeechattnError


@pytest.fixture
def corpus(tmp_path, make):
    folder = tmp_path / "corpus"
    film = make.video(folder / "v0.mp4", 0.4)
    rows = []
    for index in range(6):
        (folder / f"v{index}.mp4").write_bytes(film.read_bytes())
        rows.append((f"v{index}.mp4", "s1", "train" if index < 4 else "dev", f"text {index}"))
    make.table(folder, rows)
    return folder


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that were opened, in any order; a name in `fatal` stops the run."""
    opened, fatal, lock, real = [], set(), threading.Lock(), manifests.read_media

    def spy(path, flac, verify, sound):
        if path.stem in fatal:
            raise KeyboardInterrupt
        with lock:
            opened.append(path.stem)
        return real(path, flac, verify, sound)

    monkeypatch.setattr(manifests, "read_media", spy)
    opened_and_fatal = type("Reads", (), {"opened": opened, "fatal": fatal})
    return opened_and_fatal


def all_cuts(paths):
    return [cut.to_dict() for name in sorted(paths) for cut in CutSet.from_file(paths[name])]


def test_second_run_opens_nothing(corpus, tmp_path, reads):
    out = tmp_path / "out"
    first = all_cuts(prepare_tsv(corpus, out))
    assert sorted(reads.opened) == [f"v{i}" for i in range(6)]
    times = {file: file.stat().st_mtime_ns for file in (out / "audio").iterdir()}
    reads.opened.clear()
    assert all_cuts(prepare_tsv(corpus, out)) == first
    assert reads.opened == []
    assert {file: file.stat().st_mtime_ns for file in (out / "audio").iterdir()} == times


def test_interrupted_run_goes_on(corpus, tmp_path, reads):
    out = tmp_path / "out"
    reads.fatal.add("v3")
    with pytest.raises(KeyboardInterrupt):
        prepare_tsv(corpus, out, workers=1)
    done = list(reads.opened)
    assert set(done) >= {"v0", "v1", "v2"} and "v3" not in done
    assert not (out / "cuts_train.jsonl.gz").exists()
    # As if killed while writing: a line half there
    journal = out / ".facts.jsonl"
    finished = journal.read_text().count('"id"')
    journal.write_text(journal.read_text() + '{"id": "s1_v5", "path": "/so')
    reads.fatal.clear()
    reads.opened.clear()
    resumed = all_cuts(prepare_tsv(corpus, out))
    assert len(reads.opened) == 6 - finished and "v0" not in reads.opened
    assert [c["id"] for c in resumed] == [f"s1_v{i}" for i in (4, 5, 0, 1, 2, 3)]
    reads.opened.clear()
    prepare_tsv(corpus, out)
    assert reads.opened == []
    leftovers = [p.name for p in out.rglob("*") if ".part" in p.name]
    assert leftovers == []


def test_changed_and_lost_files_are_read_again(corpus, tmp_path, reads, make):
    out = tmp_path / "out"
    prepare_tsv(corpus, out)
    reads.opened.clear()
    make.video(corpus / "v1.mp4", 0.8)
    (out / "audio" / "s1_v2.flac").unlink()
    cuts = {cut["id"]: cut for cut in all_cuts(prepare_tsv(corpus, out))}
    assert sorted(reads.opened) == ["v1", "v2"]
    assert cuts["s1_v1"]["duration"] > 0.7 > cuts["s1_v0"]["duration"]
    assert (out / "audio" / "s1_v2.flac").exists()


def test_same_id_of_another_corpus_is_read_again(corpus, tmp_path, reads):
    out = tmp_path / "out"
    prepare_tsv(corpus, out)
    reads.opened.clear()
    moved = corpus.rename(tmp_path / "elsewhere")
    cuts = all_cuts(prepare_tsv(moved, out))
    assert len(reads.opened) == 6
    assert all(cut["custom"]["video"].startswith(str(moved)) for cut in cuts)


def test_failures_are_tried_again(corpus, tmp_path, reads):
    out = tmp_path / "out"
    whole = (corpus / "v1.mp4").read_bytes()
    (corpus / "v1.mp4").write_bytes(whole[:100])
    assert len(all_cuts(prepare_tsv(corpus, out))) == 5
    assert "v1.mp4\t3\t" in (out / "failures.tsv").read_text()
    (corpus / "v1.mp4").write_bytes(whole)
    reads.opened.clear()
    assert len(all_cuts(prepare_tsv(corpus, out))) == 6
    assert reads.opened == ["v1"]
    assert (out / "failures.tsv").read_text() == "file\tline\treason\n"


def test_full_disk_is_not_a_bad_file(corpus, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("speechattn.data.corpora.media.soundfile.write", full)
    with pytest.raises(OSError, match="No space left"):
        prepare_tsv(corpus, tmp_path / "out")


def test_whatever_a_file_makes_its_reader_raise(corpus, tmp_path, monkeypatch):
    """One file of many must not end hours of work."""
    real = media.probe

    def probe(path):
        if path.stem == "v3":
            raise ValueError("Maximum allowed dimension exceeded")
        return real(path)

    monkeypatch.setattr(media, "probe", probe)
    assert len(all_cuts(prepare_tsv(corpus, tmp_path / "out"))) == 5
    reasons = (tmp_path / "out" / "failures.tsv").read_text(encoding="utf-8")
    assert "v3.mp4\t5\tcannot be read: ValueError: Maximum allowed" in reasons


def test_union_and_splits_of_an_earlier_run(corpus, tmp_path):
    utterances, _ = read_table(corpus / "manifest.tsv")
    unions = {"all": ("train", "dev"), "some": ("dev", "nobody"), "none": ("nobody",)}
    paths = write_manifests(utterances, tmp_path, unions=unions)
    assert paths.keys() == {"train", "dev", "all", "some"}
    names = {name: [c.id for c in CutSet.from_file(path)] for name, path in paths.items()}
    assert names["all"] == names["train"] + names["dev"] == [f"s1_v{i}" for i in range(6)]
    assert names["some"] == names["dev"]
    assert read_summary(tmp_path)["splits"]["all"]["utterances"] == 6
    mine = tmp_path / "cuts_mine.jsonl.gz"
    mine.write_bytes(paths["dev"].read_bytes())
    write_manifests(utterances[:4], tmp_path)
    left = {path.name for path in tmp_path.glob("cuts_*")}
    assert left == {"cuts_train.jsonl.gz", "cuts_mine.jsonl.gz"}  # what a user made stays


def test_workers_do_not_change_the_result(corpus, tmp_path):
    def without_paths(folder, workers):
        cuts = all_cuts(prepare_tsv(corpus, folder, workers=workers))
        return [str(cut).replace(str(folder), "") for cut in cuts]

    assert without_paths(tmp_path / "a", 1) == without_paths(tmp_path / "b", 3)


def test_ids(corpus, tmp_path):
    assert utterance_id("s1", "bbas2p") == "s1_bbas2p"
    assert utterance_id("s1", "s1_bbas2p") == "s1_bbas2p"
    assert utterance_id("a b", "x/y?") == "a_b_x_y_"
    twice = [Utterance("same", corpus / "v0.mp4", "s", "train", "a")] * 2
    with pytest.raises(SpeechattnError, match="not unique: same"):
        write_manifests(twice, tmp_path / "out")
