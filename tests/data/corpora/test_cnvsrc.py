"""prepare_cnvsrc: the official layout, the baselines' lists, every track, every kind of damage."""

import csv
import json
import os
import shutil
from collections import Counter
from functools import partial

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, load_manifest_lazy

from speechattn.cli import main
from speechattn.data.corpora import prepare_cnvsrc, read_summary
from speechattn.data.corpora.cnvsrc_layout import clean_text
from speechattn.data.corpora.cnvsrc_lists import Units, read_lists
from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError, SpeechattnError
from speechattn.units import UNK_MARK

UNITS = ["<unk>", "新", "闻", "一", "二", "三", "我", "们", "今", "天", "好"]
SECONDS = 0.4


class Corpus:
    """A folder in the official layout; videos are copies of one small film without sound."""

    def __init__(self, root, make):
        self.root = root
        self.films = {
            fps: make.video(root.parent / f"{fps}.mp4", SECONDS, fps, sound=False)
            for fps in (25, 30, 100)
        }
        self.talking = make.video(root.parent / "talking.mp4", SECONDS)
        self.infos = {}

    def clip(self, folder, name, text="今天好", sound=True, fps=25, seconds=SECONDS, film=None):
        """`folder` is below the root and holds video/, audio/, text/; text None: no file of it."""
        film = self.films[fps] if film is None else film
        for kind in ("video", *(["audio"] if sound else []), *(["text"] if text else [])):
            (self.root / folder / kind).mkdir(parents=True, exist_ok=True)
        shutil.copy(film, self.root / folder / "video" / f"{name}.mp4")
        if sound:
            samples = np.random.default_rng(len(name)).uniform(-0.5, 0.5, round(seconds * 16000))
            soundfile.write(self.root / folder / "audio" / f"{name}.wav", samples, 16000)
        if text is not None and not folder.startswith("cnvsrc"):
            (self.root / folder / "text").mkdir(parents=True, exist_ok=True)
            (self.root / folder / "text" / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
        elif folder.startswith("cnvsrc"):
            dataset, part = folder.split("/")
            entry = {"frames": round(seconds * 25)}
            entry |= {} if text is None else {"text": text}
            self.infos.setdefault((dataset, part), {})[name] = entry
            self.write_infos()

    def write_infos(self):
        for (dataset, part), entries in self.infos.items():
            path = self.root / dataset / f"{dataset}-{part}-infos.json"
            path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")

    def list(self, dataset, share, rows):
        """Rows of (path, ids)."""
        lines = [f"{dataset},{path},10,{' '.join(map(str, ids))}" for path, ids in rows]
        path = self.root / dataset / f"{share}.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def units(self):
        path = self.root / "char_units.txt"
        lines = [f"{unit} {index}" for index, unit in enumerate(UNITS, start=1)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


@pytest.fixture
def corpus(tmp_path, make):
    """All five datasets: two clips of three speakers in CN-CVS, four in each dev, one in eval."""
    made = Corpus(tmp_path / "corpus", make)
    for kind, speaker, middle in (
        ("news", "n001", "00001_00{}"),
        ("speech", "s00001", "001_0000{}"),
        ("speech", "s02270", "001_0000{}"),
    ):
        for index in (1, 2):
            made.clip(f"cncvs/{kind}/{speaker}", f"{speaker}_{middle.format(index)}", "我们,新闻")
    for number in (1, 2, 3, 23065):
        made.clip("cnvsrc-single/dev", f"{number:08d}", "一二三")
    made.clip("cnvsrc-single/eval", "00030000", None, sound=False)
    for name in ("80100246", "80110001", "v0140201", "v0150202"):
        made.clip("cnvsrc-multi/dev", name, "三二一")
    made.clip("cnvsrc-multi/eval", "80109999", "天", sound=False)
    for name in ("cncvs2-p1", "CN-CVS3"):
        made.clip(f"{name}/talk/s00001", "s00001_001_00001", "好")
    made.list("cncvs", "train", [("news/n001/video/n001_00001_001.mp4", [2, 3])])
    made.list("cncvs", "valid", [("speech/s02270/video/s02270_001_00001.mp4", [2, 3])])
    made.list("cncvs", "test", [("speech/s02270/video/s02270_001_00002.mp4", [2, 3])])
    for dataset, held in (("single", "00023065"), ("multi", "v0140201")):
        name = f"cnvsrc-{dataset}"
        stems = [stem for stem in made.infos[name, "dev"] if stem != held]
        made.list(name, "train", [(f"dev/video/{stem}.mp4", [4, 5, 6]) for stem in stems])
        made.list(name, "valid", [(f"dev/video/{held}.mp4", [4, 5, 6])])
    return made


def ids(paths):
    return {name: sorted(c.id for c in CutSet.from_file(path)) for name, path in paths.items()}


def failures(folder):
    """(name of the file, its reason) of every row; checks the header."""
    with open(folder / "failures.tsv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    assert header == ["file", "line", "reason"]
    return [(os.path.basename(name), reason) for name, _, reason in rows]


SINGLE_DEV = ["single_00000001", "single_00000002", "single_00000003"]
MULTI_DEV = ["multi_80100246", "multi_80110001", "multi_v0150202"]
CNCVS = ["cncvs_n001_00001_001"]
BOTH_MORE = ["cncvs2_s00001_001_00001", "cncvs3_s00001_001_00001"]


@pytest.mark.parametrize("year", [2023, 2024, 2025])
@pytest.mark.parametrize("open_track", [False, True])
@pytest.mark.parametrize("track", ["single", "multi"])
def test_tracks(corpus, tmp_path, track, year, open_track):
    out = tmp_path / "out"
    paths = prepare_cnvsrc(corpus.root, out, track, year, open_track=open_track)
    more = open_track or year == 2025
    target, other = (SINGLE_DEV, MULTI_DEV) if track == "single" else (MULTI_DEV, SINGLE_DEV)
    pretrain = sorted(CNCVS + (BOTH_MORE + other if more else []))
    expected = {
        "pretrain": pretrain,
        "pretrain_dev": ["cncvs_s02270_001_00001"],
        "pretrain_test": ["cncvs_s02270_001_00002"],
        "finetune": target,
        "train": sorted(pretrain + target),
        "dev": ["single_00023065" if track == "single" else "multi_v0140201"],
        "test": ["single_00030000" if track == "single" else "multi_80109999"],
    }
    if more and track == "single":
        expected["dev_multi"] = ["multi_v0140201"]
    elif more:
        expected["dev_single"] = ["single_00023065"]
    assert ids(paths) == expected
    assert failures(out) == []
    summary = read_summary(out)["splits"]
    assert {name: row["utterances"] for name, row in summary.items()} == {
        name: len(cuts) for name, cuts in expected.items()
    }
    assert summary["train"]["hours"] == pytest.approx(
        summary["pretrain"]["hours"] + summary["finetune"]["hours"], abs=2e-4
    )


def test_cuts(corpus, tmp_path):
    out = tmp_path / "out"
    paths = prepare_cnvsrc(corpus.root, out, "multi", 2025)
    cuts = {cut.id: cut for path in paths.values() for cut in CutSet.from_file(path)}
    news = cuts["cncvs_n001_00001_001"]
    assert news.supervisions[0].text == "我们新闻"  # no comma among the baselines' characters
    assert (news.supervisions[0].speaker, news.supervisions[0].language) == ("n001", "cmn")
    assert news.video == str(corpus.root / "cncvs/news/n001/video/n001_00001_001.mp4")
    assert (news.video_fps, news.video_frames, news.has_audio) == (25.0, 10, True)
    wav = corpus.root / "cncvs/news/n001/audio/n001_00001_001.wav"
    assert news.recording.sources[0].source == str(wav)  # where it lies: nothing was copied
    np.testing.assert_array_equal(news.load_audio()[0], soundfile.read(wav, dtype="float32")[0])
    parts = {key: cut.part for key, cut in cuts.items()}
    assert parts["cncvs_n001_00001_001"] == "cncvs-news"
    assert parts["cncvs_s02270_001_00001"] == "cncvs-speech"
    assert parts["multi_80100246"] == "cnvsrc-multi-record"
    assert parts["multi_v0140201"] == "cnvsrc-multi-vlog"
    assert parts["single_00000001"] == "cnvsrc-single"
    assert parts["cncvs3_s00001_001_00001"] == "cncvs3"
    speakers = {key: cut.supervisions[0].speaker for key, cut in cuts.items()}
    assert speakers["multi_80100246"] == "8010" and speakers["multi_v0140201"] == "v014"
    assert speakers["single_00000002"] == "single"
    # A speaker's number in one dataset is not that of another.
    assert speakers["cncvs2_s00001_001_00001"] == "cncvs2_s00001"
    assert not (out / "audio" / "multi_80100246.flac").exists()
    assert (out / "audio" / "multi_80109999.flac").exists()  # eval has no sound: silence
    assert cuts["multi_80109999"].supervisions[0].text == "天"
    assert load_manifest_lazy(paths["train"]).is_lazy


def test_eval_without_transcripts(corpus, tmp_path):
    paths = prepare_cnvsrc(corpus.root, tmp_path / "out", "single")
    (cut,) = CutSet.from_file(paths["test"])
    assert (cut.supervisions[0].text, cut.has_audio) == ("", False)
    # Once some have a text, those that have none are a fault.
    corpus.clip("cnvsrc-single/eval", "00030001", "一", sound=False)
    paths = prepare_cnvsrc(corpus.root, tmp_path / "out", "single")
    assert [c.supervisions[0].text for c in CutSet.from_file(paths["test"])] == ["一"]
    assert failures(tmp_path / "out") == [("00030000.mp4", "missing pair: no transcript")]
    # No eval at all: no such split, and none of the earlier run left behind.
    shutil.rmtree(corpus.root / "cnvsrc-single/eval")
    (corpus.root / "cnvsrc-single/cnvsrc-single-eval-infos.json").unlink()
    assert "test" not in prepare_cnvsrc(corpus.root, tmp_path / "out", "single")
    assert not (tmp_path / "out" / "cuts_test.jsonl.gz").exists()


def without_lists(corpus):
    for path in corpus.root.glob("*/*.csv"):
        path.unlink()


def test_shares_are_functions_of_the_id(corpus, tmp_path):
    without_lists(corpus)
    for number in range(100, 160):
        corpus.clip("cnvsrc-multi/dev", f"8012{number:04d}", "一", sound=False)
    paths = prepare_cnvsrc(corpus.root, tmp_path / "a", "multi")
    before = ids(paths)
    # 1/4 of 64: 16 within four standard deviations
    assert 2 <= len(before["dev"]) <= 30
    for number in range(100, 130):
        corpus.infos["cnvsrc-multi", "dev"].pop(f"8012{number:04d}")
        (corpus.root / f"cnvsrc-multi/dev/video/8012{number:04d}.mp4").unlink()
    corpus.write_infos()
    corpus.clip("cnvsrc-multi/dev", "80120999", "一", sound=False)
    after = ids(prepare_cnvsrc(corpus.root, tmp_path / "b", "multi"))
    for name in ("dev", "finetune"):
        assert set(after[name]) - {"multi_80120999"} <= set(before[name])
    assert not set(after["dev"]) & set(after["finetune"])


def test_held_out_speakers_stay_together(corpus, tmp_path):
    without_lists(corpus)
    shutil.rmtree(corpus.root / "cncvs")
    for speaker in range(80):
        for clip in (1, 2):
            name = f"s{speaker:05d}"
            corpus.clip(f"cncvs/speech/{name}", f"{name}_001_0000{clip}", "一", sound=False)
    made = ids(prepare_cnvsrc(corpus.root, tmp_path / "out", "single"))
    names = ("pretrain", "pretrain_dev", "pretrain_test")
    counts = {name: Counter(i.split("_")[1] for i in made.get(name, [])) for name in names}
    assert set().union(*counts.values()) == {f"s{n:05d}" for n in range(80)}
    assert all(set(c.values()) <= {2} for c in counts.values())
    assert len(counts["pretrain"]) >= 68 and counts["pretrain_dev"] + counts["pretrain_test"]


def test_extra(corpus, tmp_path, make):
    folder = tmp_path / "more"
    make.video(folder / "x.mp4", SECONDS)
    make.video(folder / "y.mp4", SECONDS)
    make.table(folder, [("x.mp4", "ann", "train", "一,二"), ("y.mp4", "ann", "dev", "三")])
    with pytest.raises(ConfigError, match="--open"):
        prepare_cnvsrc(corpus.root, tmp_path / "out", "single", extra=[folder])
    paths = prepare_cnvsrc(
        corpus.root, tmp_path / "out", "single", 2023, open_track=True, extra=[folder]
    )
    (cut,) = [c for c in CutSet.from_file(paths["train"]) if c.part == "extra"]
    said = cut.supervisions[0]
    assert (cut.id, said.text, said.speaker) == ("extra1_ann_x", "一二", "extra1_ann")
    assert "extra1_ann_x" in ids(paths)["pretrain"]


# ------------------------------------------------------------------------------------ lists


def test_transcripts_of_the_lists(corpus, tmp_path):
    """Where a text is nowhere else, it is that of the token ids."""
    shutil.rmtree(corpus.root / "cncvs/news/n001/text")
    out = tmp_path / "out"
    prepare_cnvsrc(corpus.root, out, "single")
    ((name, reason),) = failures(out)
    assert name == "n001_00001_001.mp4" and "token ids (line 1" in reason and "--units" in reason
    corpus.units()
    first, second = (f"news/n001/video/n001_00001_00{n}.mp4" for n in (1, 2))
    corpus.list("cncvs", "train", [(first, [2, 1, 3]), (second, [2, 12])])
    paths = prepare_cnvsrc(corpus.root, out, "single")
    (cut,) = CutSet.from_file(paths["pretrain"])
    assert cut.supervisions[0].text == f"新{UNK_MARK}闻"
    ((name, reason),) = failures(out)
    assert name == "n001_00001_002.mp4" and "an id that is not in" in reason
    # and lists of another folder, as the baselines have them
    data = tmp_path / "baseline" / "data"
    for path in sorted(corpus.root.glob("*/*.csv")):
        (data / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.move(path, data / path.parent.name / path.name)
    (tmp_path / "baseline" / "datamodule").mkdir()
    shutil.move(corpus.root / "char_units.txt", tmp_path / "baseline" / "datamodule")
    again = prepare_cnvsrc(corpus.root, tmp_path / "out2", "single", lists=data)
    assert ids(again) == ids(paths)


def test_units_of_2023(tmp_path):
    """SentencePiece units: pieces of several characters, a space as U+2581."""
    path = tmp_path / "unigram5000_units.txt"
    path.write_text("<unk> 1\n\u2581 2\n腌 3\n\u2581啊 4\n癌症 5\n", encoding="utf-8")
    units = Units(path)
    assert units.text([2, 3, 5]) == "腌癌症"
    assert units.text([5, 4, 1]) == f"癌症 啊{UNK_MARK}"
    for wrong in ([0], [6], [-1], [99]):
        assert units.text(wrong) is None
    path.write_text("a 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="unigram5000_units.txt: its first unit is 'a'"):
        Units(path)


def test_rows_of_a_list(tmp_path):
    """The lines of the published lists, and what may be wrong with one."""
    lines = [
        b"cnvsrc-multi,dev/video/80100246.mp4,74,2791 1382 2083 421 1698 1858 3577 755 39",
        b"cnvsrc-multi,dev/video/v0140203.mp4,42,2613 4296 416 3627 4345\r",
        b"",
        b"cnvsrc-multi,dev/video/80100001.mp4,74",
        b"cnvsrc-multi,dev/video/80100002.mp4,x,1 2",
        b"cnvsrc-multi,dev/video/80100003.mp4,7,1 two",
        b"cnvsrc-multi,dev/video/\xff.mp4,7,1 2",
        b"cnvsrc-multi,dev/video/80100004.mp4,7,",
        b"cnvsrc-multi,dev/video/80100246.mp4,74,5",
    ]
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    (tmp_path / "valid.csv").write_text("x,dev/video/v0140203.mp4,42,1\n")
    found, bad = read_lists(tmp_path)
    assert found.shares == {"train", "valid"}
    assert found.rows["dev/video/80100246"].ids[:2] == (2791, 1382)
    assert found.rows["dev/video/v0140203"].share == "valid"  # the held-out list has it
    assert found.rows["dev/video/80100004"].ids == ()
    assert sorted(failure.line for failure in bad) == [2, 4, 5, 6, 7, 9]
    by_line = {failure.line: failure.reason for failure in bad}
    assert "line 1 of" in by_line[2] and "line 1 of" in by_line[9]
    assert "dataset,path,frames,token ids" in by_line[4]


def test_older_names(corpus, tmp_path):
    """Of the first release: single-speaker/; its lists may lie under the newer name."""
    data = tmp_path / "data"
    for name in ("cncvs", "cnvsrc-single"):
        (data / name).mkdir(parents=True)
        for path in (corpus.root / name).glob("*.csv"):
            shutil.move(path, data / name / path.name)
    (corpus.root / "cnvsrc-single").rename(corpus.root / "single-speaker")
    paths = prepare_cnvsrc(corpus.root, tmp_path / "out", "single", 2023, lists=data)
    assert ids(paths)["finetune"] == SINGLE_DEV
    assert ids(paths)["dev"] == ["single_00023065"]


# ------------------------------------------------------------------------------------ damage


def test_damage(corpus, tmp_path):
    without_lists(corpus)
    speech = corpus.root / "cncvs/speech/s00009"
    add = partial(corpus.clip, "cncvs/speech/s00009")
    add("s00009_001_00001")
    add("s00009_001_00002", "")
    add("s00009_001_00003", " ，\t")
    add("s00009_001_00004", fps=30)
    add("s00009_001_00005", fps=100, seconds=SECONDS)
    add("s00009_001_00006", seconds=1.3)
    add("s00009_001_中文")
    add("s00009_001_00008", sound=False)
    for number in (10, 11, 12, 13, 14, 15, 16, 17):
        add(f"s00009_001_000{number}")
    cut = speech / "video/s00009_001_00010.mp4"
    cut.write_bytes(cut.read_bytes()[:-200])
    (speech / "video/s00009_001_00011.mp4").write_bytes(b"")
    (speech / "video/s00009_001_00012.mp4").write_bytes(b"no film, only some text" * 9)
    (speech / "video/s00009_001_00013.mp4").unlink()  # leaves its sound and its text behind
    (speech / "text/s00009_001_00014.txt").unlink()
    (speech / "text/s00009_001_00015.txt").write_bytes("今天".encode("gb18030"))
    (speech / "text/s00009_001_00016.txt").write_bytes(b"\xff\xff\xff")
    (speech / "audio/s00009_001_00017.wav").write_bytes(b"RIFF, but no sound")
    soundfile.write(speech / "audio/s00009_001_00018.wav", np.zeros(6400), 16000)
    shutil.copy(speech / "audio/s00009_001_00018.wav", speech / "video/s00009_001_00018.mp4")
    (speech / "text/s00009_001_00018.txt").write_text("一", encoding="utf-8")
    (speech / "video/._s00009_001_00001.mp4").write_bytes(b"macOS")
    (speech / "video/notes.doc").write_bytes(b"what is no video is passed over")
    raw = os.fsencode(speech / "video") + b"/s00009_\xb0\xa1.mp4"
    shutil.copy(corpus.films[25], raw)
    corpus.infos["cnvsrc-single", "dev"]["00000777"] = {"text": "一"}
    corpus.infos["cnvsrc-single", "dev"]["00000003"] = {"text": ""}
    corpus.infos["cnvsrc-single", "dev"]["00000778"] = [1]
    corpus.write_infos()

    out = tmp_path / "out"
    paths = prepare_cnvsrc(corpus.root, out, "single")
    stem = "s00009_001_000"
    lost = {
        f"{stem}02.mp4": "empty transcript",
        f"{stem}03.mp4": "empty transcript",
        f"{stem}06.mp4": "0.40 s of picture and 1.30 s of sound",
        f"{stem}10.mp4": "truncated",
        f"{stem}11.mp4": "empty file",
        f"{stem}12.mp4": "",
        f"{stem}13.wav": "missing pair: no video",
        f"{stem}13.txt": "missing pair: no video",
        f"{stem}14.mp4": "missing pair: no transcript",
        f"{stem}16.txt": "cannot be read",
        f"{stem}18.mp4": "no picture",
        "s00009_\\udcb0\\udca1.mp4": "not UTF-8",
        "00000003.mp4": "empty transcript",
    }
    kept = {
        f"{stem}04.mp4": "30 frames a second, not 25",
        f"{stem}05.mp4": "100 frames a second",
        f"{stem}08.mp4": "no sound in audio/",
        f"{stem}17.mp4": f"without {stem}17.wav",
        "s00009_001_中文.mp4": "not ASCII: s00009_001_u4e2du6587 in its id",
    }
    found = failures(out)
    json_reasons = sorted(r for name, r in found if name == "cnvsrc-single-dev-infos.json")
    assert [r[:20] for r in json_reasons] == ["entry without a clip", "missing pair: no vid"]
    by_name = {name: reason for name, reason in found if not name.endswith(".json")}
    assert len(by_name) == len(found) - 2
    assert {n for n, r in by_name.items() if r.startswith("kept: ")} == set(kept)
    assert {n for n, r in by_name.items() if not r.startswith("kept: ")} == set(lost)
    for name, reason in (lost | kept).items():
        assert by_name[name] and reason in by_name[name], (name, by_name[name])
    summary = read_summary(out)
    assert (summary["failures"], summary["remarks"]) == (len(lost) + 2, len(kept))

    cuts = {c.id: c for name in paths if name != "train" for c in CutSet.from_file(paths[name])}
    used = {key for key in cuts if key.startswith("cncvs_s00009")}
    expected = {f"cncvs_{stem}{n}" for n in ("01", "04", "05", "08", "15", "17")}
    assert used == expected | {"cncvs_s00009_001_u4e2du6587"}
    assert cuts[f"cncvs_{stem}15"].supervisions[0].text == "今天"
    assert [cuts[f"cncvs_{stem}{n}"].has_audio for n in ("04", "08", "17")] == [True, False, False]
    assert "cncvs_s00009_001_u4e2du6587" in {c.recording.id for c in cuts.values()}


def test_a_rate_that_cannot_be_true(corpus, tmp_path, make):
    """A film at 4 frames a second, whose sound is as long as it: no speech can be read off it."""
    without_lists(corpus)
    slow = make.video(tmp_path / "slow.mp4", 2.0, 4, sound=False)
    corpus.clip("cncvs/news/n001", "n001_00009_001", seconds=2.0, film=slow)
    prepare_cnvsrc(corpus.root, tmp_path / "out", "single")
    expected = ("n001_00009_001.mp4", "wrong frame rate: 4 a second")
    assert failures(tmp_path / "out") == [expected]


def test_damaged_json(corpus, tmp_path):
    """The lists still know the texts."""
    corpus.units()
    (corpus.root / "cnvsrc-single/cnvsrc-single-dev-infos.json").write_text('{"00000001": {"te')
    paths = prepare_cnvsrc(corpus.root, tmp_path / "out", "single")
    assert [c.supervisions[0].text for c in CutSet.from_file(paths["dev"])] == ["一二三"]
    ((name, reason),) = failures(tmp_path / "out")
    assert name == "cnvsrc-single-dev-infos.json" and "cannot be read as JSON" in reason


@pytest.mark.parametrize(
    "content",
    [
        {"00000001": "一", "00000002": "二"},
        {"00000001.mp4": {"transcription": "一"}, "dev/video/00000002.mp4": {"txt": "二"}},
        [{"id": "00000001", "text": "一", "spk": 7}, {"video": "a/00000002.mp4", "label": "二"}],
        {"data": [{"name": "00000001", "content": "一"}, {"uid": "00000002", "sentence": "二"}]},
    ],
)
def test_forms_of_the_json(corpus, tmp_path, content):
    path = corpus.root / "cnvsrc-single/cnvsrc-single-dev-infos.json"
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    paths = prepare_cnvsrc(corpus.root, tmp_path / "out", "single")
    said = [c.supervisions[0] for c in CutSet.from_file(paths["finetune"])]
    assert [s.text for s in said] == ["一", "二"]
    assert said[0].speaker == ("7" if isinstance(content, list) else "single")


def test_lost_files_of_a_list(corpus, tmp_path):
    (corpus.root / "cnvsrc-single/dev/video/00000002.mp4").unlink()
    (corpus.root / "cnvsrc-single/dev/audio/00000002.wav").unlink()
    prepare_cnvsrc(corpus.root, tmp_path / "out", "single")
    assert sorted(failures(tmp_path / "out")) == [
        ("cnvsrc-single-dev-infos.json", "missing pair: no video of 00000002"),
        ("train.csv", f"no such file: {corpus.root}/cnvsrc-single/dev/video/00000002.mp4"),
    ]


def test_same_clip_twice(corpus, tmp_path):
    without_lists(corpus)
    shutil.copytree(corpus.root / "cncvs/news/n001", corpus.root / "cncvs/news/n002")
    prepare_cnvsrc(corpus.root, tmp_path / "out", "single")
    found = failures(tmp_path / "out")
    assert [name for name, _ in found] == ["n001_00001_001.mp4", "n001_00001_002.mp4"]
    assert all("/n001/" in reason for _, reason in found)


# ------------------------------------------------------------------------------------ again


def test_second_run_reads_nothing(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = prepare_cnvsrc(corpus.root, out, "multi", 2025)
    before = {name: [c.to_dict() for c in CutSet.from_file(p)] for name, p in first.items()}
    with open(out / ".texts.jsonl", "a", encoding="utf-8") as journal:
        journal.write('["torn')

    def never(*args):
        raise AssertionError(f"opened {args}")

    monkeypatch.setattr("speechattn.data.corpora.manifests.read_media", never)
    real = type(corpus.root).read_bytes
    monkeypatch.setattr(
        "pathlib.Path.read_bytes", lambda p: never(p) if p.suffix == ".txt" else real(p)
    )
    again = prepare_cnvsrc(corpus.root, out, "multi", 2025)
    assert {n: [c.to_dict() for c in CutSet.from_file(p)] for n, p in again.items()} == before
    monkeypatch.undo()
    text = corpus.root / "cncvs/news/n001/text/n001_00001_001.txt"
    text.write_text("一二三一二三", encoding="utf-8")
    cuts = CutSet.from_file(prepare_cnvsrc(corpus.root, out, "multi", 2025)["pretrain"])
    assert next(iter(cuts)).supervisions[0].text == "一二三一二三"


def test_sound_that_was_mended(corpus, tmp_path):
    wav = corpus.root / "cnvsrc-single/dev/audio/00000001.wav"
    whole = wav.read_bytes()
    wav.write_bytes(whole[:3000])
    cut = CutSet.from_file(prepare_cnvsrc(corpus.root, tmp_path / "o", "single")["finetune"])[0]
    assert not cut.has_audio and failures(tmp_path / "o")[0][1].startswith("kept: without 0000000")
    # a second run does not forget it
    prepare_cnvsrc(corpus.root, tmp_path / "o", "single")
    assert len(failures(tmp_path / "o")) == 1
    wav.write_bytes(whole)
    cut = CutSet.from_file(prepare_cnvsrc(corpus.root, tmp_path / "o", "single")["finetune"])[0]
    assert cut.has_audio and failures(tmp_path / "o") == []


def test_sound_inside_the_video(corpus, tmp_path):
    """Without audio/, a video's own sound is its sound."""
    shutil.rmtree(corpus.root / "cnvsrc-single/dev/audio")
    for name in corpus.infos["cnvsrc-single", "dev"]:
        shutil.copy(corpus.talking, corpus.root / f"cnvsrc-single/dev/video/{name}.mp4")
    cuts = CutSet.from_file(prepare_cnvsrc(corpus.root, tmp_path / "o", "single")["finetune"])
    assert all(cut.has_audio and cut.load_audio().any() for cut in cuts)
    assert failures(tmp_path / "o") == []


# ------------------------------------------------------------------------------------ the rest


def test_what_is_missing_is_said(corpus, tmp_path, caplog):
    with pytest.raises(ConfigError, match="no such folder"):
        prepare_cnvsrc(tmp_path / "nowhere", tmp_path / "out", "single")
    with pytest.raises(ConfigError, match="single or multi"):
        prepare_cnvsrc(corpus.root, tmp_path / "out", "both")
    with pytest.raises(ConfigError, match="lists: no such folder"):
        prepare_cnvsrc(corpus.root, tmp_path / "out", "multi", lists=tmp_path / "no")
    (corpus.root / "cn_cvs").mkdir()
    with pytest.raises(ConfigError, match="same dataset as"):
        prepare_cnvsrc(corpus.root, tmp_path / "out", "multi")
    (corpus.root / "cn_cvs").rmdir()
    shutil.rmtree(corpus.root / "cncvs")
    paths = prepare_cnvsrc(corpus.root, tmp_path / "out", "multi")
    assert "no cncvs in it" in caplog.text
    assert ids(paths)["train"] == ids(paths)["finetune"] == MULTI_DEV
    shutil.rmtree(corpus.root / "cnvsrc-multi")
    with pytest.raises(ConfigError, match=r"no cnvsrc-multi in .*CN-CVS3, cncvs2-p1"):
        prepare_cnvsrc(corpus.root, tmp_path / "out", "multi")
    shutil.rmtree(corpus.root / "cnvsrc-single/dev/video")
    shutil.rmtree(corpus.root / "cnvsrc-single/eval")
    with pytest.raises(SpeechattnError, match="nothing could be prepared"):
        prepare_cnvsrc(corpus.root, tmp_path / "out", "single")


@pytest.mark.parametrize(
    "text, clean",
    [
        ("\ufeff这就是，我们 今天的\u3000新闻。\n", "这就是我们今天的新闻"),
        ("bin blue at s two please", "bin blue at s two please"),
        ("我有 CT 和 x光, it's ok", "我有CT和x光it's ok"),
        ("百分之50%\u200b", "百分之50"),
        ("\ue83d", "\ue83d"),  # the published list has a character for private use
        ("甘<unk>普", f"甘{UNK_MARK}普"),
        (" ，。 ", ""),
    ],
)
def test_clean_text(text, clean):
    assert clean_text(text) == clean


def test_command(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["prepare", "cnvsrc", str(corpus.root), str(out)]) == 2
    assert "--track" in capsys.readouterr().err
    more = ["--track", "multi", "--year", "2023", "--open"]
    assert main(["prepare", "cnvsrc", str(corpus.root), str(out), *more]) == 0
    assert read_summary(out)["splits"]["dev_single"]["utterances"] == 1

    tokens = tmp_path / "tokens"
    assert main(["import-tokens", str(corpus.units()), "--output", str(tokens)]) == 0
    tokenizer = Tokenizer.load(tokens)
    assert tokenizer.tokens == ["<blank>", *UNITS, "<sos/eos>"]
    assert tokenizer.encode("新闻鼎") == [2, 3, 1]
    cuts = str(out / "cuts_train.jsonl.gz")
    assert main(["tokens", cuts, "--output", str(tmp_path / "t")]) == 0
    assert set("我们新闻三二一好") <= set(Tokenizer.load(tmp_path / "t").tokens)


@pytest.mark.slow
def test_grid_in_this_layout(data_dir, tmp_path):
    """Real clips, arranged as CNVSRC-Multi: all of them go in, untouched."""
    grid = data_dir / "grid"
    if not (grid / "manifest.tsv").is_file():
        pytest.skip(f"no GRID in {grid}")
    root = tmp_path / "corpus"
    (root / "cnvsrc-multi/dev/video").mkdir(parents=True)
    (root / "cnvsrc-multi/eval/video").mkdir(parents=True)
    infos = {"dev": {}, "eval": {}}
    shares = {"train": [], "valid": []}
    for line in (grid / "manifest.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        file, speaker, split, text = line.split("\t")
        name = os.path.basename(file)
        part = "eval" if split == "test" else "dev"
        (root / f"cnvsrc-multi/{part}/video/{name}").symlink_to(grid / file)
        infos[part][os.path.splitext(name)[0]] = {"text": text, "speaker": speaker}
        if part == "dev":
            shares["train" if split == "train" else "valid"].append(name)
    for part, entries in infos.items():
        path = root / f"cnvsrc-multi/cnvsrc-multi-{part}-infos.json"
        path.write_text(json.dumps(entries), encoding="utf-8")
    for share, names in shares.items():
        rows = "".join(f"cnvsrc-multi,dev/video/{name},75,1\n" for name in names)
        (root / f"cnvsrc-multi/{share}.csv").write_text(rows)
    out = tmp_path / "out"
    paths = prepare_cnvsrc(root, out, "multi")
    summary = read_summary(out)
    counts = {name: row["utterances"] for name, row in summary["splits"].items()}
    total = sum(map(len, infos.values()))
    assert counts == {"finetune": 700, "train": 700, "dev": 45, "test": 105} and total == 850
    assert summary["failures"] == summary["remarks"] == 0
    for cut in CutSet.from_file(paths["test"]):
        stem = os.path.splitext(os.path.basename(cut.video))[0]
        assert cut.supervisions[0].text == infos["eval"][stem]["text"]
        assert cut.has_audio and cut.video_fps == 25.0 and abs(cut.duration - 3) < 0.2
