"""prepare_tsv: what goes in, what is left out, and that it is said."""

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, RecordingSet, SupervisionSet, load_manifest_lazy, validate
from lhotse.qa import validate_recordings_and_supervisions

from speechattn.data.corpora import prepare_tsv, read_summary
from speechattn.data.media import read_audio
from speechattn.errors import ConfigError, SpeechattnError


def failures(folder) -> dict[str, str]:
    """Line to reason; checks the header."""
    header, *rows = (folder / "failures.tsv").read_text(encoding="utf-8").split("\n")[:-1]
    assert header == "file\tline\treason"
    return {line: reason for _, line, reason in (row.split("\t") for row in rows)}


def test_audio_of_several_rates(tmp_path, make):
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    make.sound(corpus / "a" / "one.wav", 0.5, 8000)
    make.sound(corpus / "two.flac", 0.75, 44100)
    make.sound(corpus / "three.wav", 1.0, 22050, channels=2)
    rows = [
        ("a/one.wav", "ann", "train", "HELLO  World"),
        ("two.flac", "ben", "train", "你好 世界"),
        ("three.wav", "ben", "test", "third"),
    ]
    make.table(corpus, rows)
    paths = prepare_tsv(corpus, out, language="en")
    assert paths == {"train": out / "cuts_train.jsonl.gz", "test": out / "cuts_test.jsonl.gz"}

    train, test = (CutSet.from_file(paths[name]) for name in ("train", "test"))
    one, two = train
    (three,) = test
    assert [c.id for c in (one, two, three)] == ["ann_one", "ben_two", "ben_three"]
    assert [c.supervisions[0].text for c in (one, two)] == ["HELLO World", "你好 世界"]
    assert [c.supervisions[0].speaker for c in (one, two)] == ["ann", "ben"]
    assert one.supervisions[0].language == "en"
    # One channel: the file itself, at its rate. Two: mixed down, at 16 kHz.
    assert one.recording.sources[0].source == str(corpus / "a" / "one.wav")
    assert (one.sampling_rate, two.sampling_rate, three.sampling_rate) == (8000, 44100, 16000)
    assert [c.duration for c in (one, two)] == [0.5, 0.75]
    assert three.duration == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_array_equal(
        one.load_audio()[0], soundfile.read(corpus / "a" / "one.wav", dtype="float32")[0]
    )
    # FLAC holds 16 bits, half a step of which may be lost
    stereo = read_audio(corpus / "three.wav")
    np.testing.assert_allclose(three.load_audio()[0], stereo, atol=0.5001 / 32768)
    assert one.resample(16000).load_audio().shape == (1, 8000)
    for cut in (one, two, three):
        validate(cut, read_data=True)
        assert cut.has_audio is True
        assert "video" not in cut.custom

    recordings = RecordingSet.from_file(out / "recordings.jsonl.gz")
    supervisions = SupervisionSet.from_file(out / "supervisions.jsonl.gz")
    validate_recordings_and_supervisions(recordings, supervisions, read_data=True)
    assert load_manifest_lazy(paths["train"]).is_lazy
    assert failures(out) == {}
    summary = read_summary(out)
    assert summary["failures"] == 0
    expected = {"utterances": 2, "hours": round(1.25 / 3600, 4), "speakers": 2, "silent": 0}
    assert summary["splits"]["train"] == expected


def test_video(tmp_path, make):
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    talking = make.video(corpus / "talking.mp4", 1.2, 30)
    mute = make.video(corpus / "mute.mp4", 1.0, 25, sound=False)
    (corpus / "marks.npz").write_bytes(b"not opened here")
    rows = [
        ("talking.mp4", "s1", "train", "one", "marks.npz"),
        ("mute.mp4", "s1", "train", "two", ""),
    ]
    make.table(corpus, rows, "file speaker split text landmarks")
    cuts = CutSet.from_file(prepare_tsv(corpus, out)["train"])
    one, two = cuts

    assert one.video == str(talking)
    assert (one.video_fps, one.video_frames, one.has_audio) == (30.0, 36, True)
    assert one.landmarks == str(corpus / "marks.npz")
    assert one.recording.sources[0].source == str(out / "audio" / "s1_talking.flac")
    np.testing.assert_array_equal(one.load_audio()[0], read_audio(talking))
    assert soundfile.info(out / "audio" / "s1_talking.flac").subtype == "PCM_16"

    assert two.video == str(mute)
    assert (two.video_fps, two.video_frames, two.has_audio) == (25.0, 25, False)
    assert "landmarks" not in two.custom
    assert two.duration == 1.0
    assert not two.load_audio().any()
    for cut in (one, two):
        validate(cut, read_data=True)
    assert read_summary(out)["splits"]["train"]["silent"] == 1


def test_loud_sound_survives_flac(tmp_path, make):
    """Full scale is where float to 16 bits and back goes wrong by one."""
    samples = np.stack([np.array([-32768, -32767, 0, 1, 32766, 32767], np.int16)] * 2, axis=1)
    soundfile.write(tmp_path / "loud.wav", samples, 16000)
    make.table(tmp_path, [("loud.wav", "s", "train", "x")])
    (cut,) = CutSet.from_file(prepare_tsv(tmp_path, tmp_path / "out")["train"])
    np.testing.assert_array_equal(cut.load_audio()[0] * 32768, samples[:, 0])


def test_bad_rows_are_listed_with_their_lines(tmp_path, make, caplog):
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    make.sound(corpus / "good.wav")
    make.sound(corpus / "sub" / "good.wav")
    make.sound(corpus / "late.wav")
    long = make.sound(corpus / "cut.flac", 2.0)
    long.write_bytes(long.read_bytes()[: long.stat().st_size // 2])
    film = make.video(corpus / "film.mp4", 1.0)
    film.write_bytes(film.read_bytes()[:-200])
    (corpus / "empty.wav").touch()
    (corpus / "text.wav").write_text("this is not sound at all, not by a long way")
    soundfile.write(corpus / "nothing.wav", np.zeros(0), 16000)
    lines = [
        "split\tfile\ttext\tspeaker",
        "train\tgood.wav\tfine\ts1",
        "train\tgood.wav\tmissing a field",
        "train\tgood.wav\t \ts1",
        "train\tnowhere.wav\tabc\ts1",
        "train\tsub/good.wav\tsame id\ts1",
        "train\tcut.flac\tabc\ts1",
        "train\tfilm.mp4\tabc\ts1",
        "train\tempty.wav\tabc\ts1",
        "train\ttext.wav\tabc\ts1",
        "train\tnothing.wav\tabc\ts1",
        "",
        "a/b\tlate.wav\tabc\ts1",
        "train\tlate.wav\tabc\t",
        "train\tlate.wav\tfine too\ts1",
    ]
    bad_utf8 = b"train\tlate.wav\t\xff\xfe\ts2\r\n"
    text = "\r\n".join(lines) + "\r\n"
    (corpus / "manifest.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode() + bad_utf8)

    cuts = CutSet.from_file(prepare_tsv(corpus, out)["train"])
    assert [cut.supervisions[0].text for cut in cuts] == ["fine", "fine too"]
    found = failures(out)
    expected = {
        "3": "3 fields where the header has 4",
        "4": "empty text",
        "5": "no such file",
        "6": "id s1_good was in line 2",
        "7": "",
        "8": "truncated",
        "9": "empty file",
        "10": "",
        "11": "0 samples",
        "13": "split 'a/b'",
        "14": "empty speaker",
        "16": "utf-8",
    }
    assert found.keys() == expected.keys()
    for line, reason in expected.items():
        assert found[line] and reason in found[line], (line, found[line])
    assert read_summary(out)["failures"] == len(expected)
    assert "12 left out" in caplog.text


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_truncated_sound(tmp_path, make, suffix):
    make.sound(tmp_path / "whole.wav")
    cut = make.sound(tmp_path / f"cut.{suffix}", 1.0)
    rows = [("whole.wav", "s", "train", "a"), (cut.name, "s", "train", "b")]
    make.table(tmp_path, rows)
    assert len(list(CutSet.from_file(prepare_tsv(tmp_path, tmp_path / "1")["train"]))) == 2
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (left,) = CutSet.from_file(prepare_tsv(tmp_path, tmp_path / "2")["train"])
    assert left.id == "s_whole"
    assert failures(tmp_path / "2").keys() == {"3"}


def test_wav_from_a_pipe_is_whole(tmp_path, make):
    """Its header could not know the size: not a truncated file."""
    file = make.sound(tmp_path / "pipe.wav")
    content = bytearray(file.read_bytes())
    at = content.index(b"data") + 4
    content[4:8] = content[at : at + 4] = b"\xff\xff\xff\xff"
    file.write_bytes(content)
    make.table(tmp_path, [("pipe.wav", "s", "train", "a")])
    (cut,) = CutSet.from_file(prepare_tsv(tmp_path, tmp_path / "out")["train"])
    assert cut.duration == 0.5


def test_a_failed_row_does_not_take_the_id(tmp_path, make):
    make.sound(tmp_path / "good.wav")
    rows = [("gone/good.wav", "s1", "train", "a"), ("good.wav", "s1", "train", "b")]
    make.table(tmp_path, rows)
    (cut,) = CutSet.from_file(prepare_tsv(tmp_path, tmp_path / "out")["train"])
    assert (cut.id, cut.supervisions[0].text) == ("s1_good", "b")


def test_further_columns(tmp_path, make, caplog):
    make.sound(tmp_path / "x.wav")
    rows = [("x.wav", "s", "train", "t", "my/id 1", "cmn", "north", "9", "?")]
    header = "file speaker split text id language accent duration no-name"
    make.table(tmp_path, rows, header)
    (cut,) = CutSet.from_file(prepare_tsv(tmp_path, tmp_path / "out", language="en")["train"])
    assert cut.id == cut.recording.id == "my_id_1"
    assert cut.supervisions[0].language == "cmn"
    assert cut.custom == {"accent": "north", "has_audio": True}
    assert cut.duration == 0.5
    assert "'duration' is ignored" in caplog.text and "'no-name' is ignored" in caplog.text


@pytest.mark.parametrize(
    "header, word",
    [
        ("file speaker text", "split"),
        ("path\tspk", "file, speaker"),
        ("", "file"),
        ("file speaker split text text", "twice"),
    ],
)
def test_wrong_header(tmp_path, make, header, word):
    make.table(tmp_path, [], header)
    with pytest.raises(ConfigError, match=rf"manifest\.tsv: line 1: .*{word}"):
        prepare_tsv(tmp_path, tmp_path / "out")


def test_no_table(tmp_path):
    with pytest.raises(ConfigError, match=r"manifest\.tsv: no such table"):
        prepare_tsv(tmp_path, tmp_path / "out")


def test_nothing_usable(tmp_path, make):
    make.table(tmp_path, [("no.wav", "s", "train", "a"), ("x.wav", "s", "train", "")])
    with pytest.raises(SpeechattnError, match=r"2 failures, .*failures\.tsv.*no such file"):
        prepare_tsv(tmp_path, tmp_path / "out")
    assert failures(tmp_path / "out").keys() == {"2", "3"}


def test_table_by_path(tmp_path, make):
    make.sound(tmp_path / "x.wav")
    make.table(tmp_path, [("x.wav", "s", "train", "a")]).rename(tmp_path / "list.tsv")
    assert prepare_tsv(tmp_path / "list.tsv", tmp_path / "1").keys() == {"train"}
    assert prepare_tsv(tmp_path, tmp_path / "2", table="list.tsv").keys() == {"train"}


@pytest.mark.parametrize("name, count", [("zh", 12), ("en", 12)])
def test_real_corpora(data_dir, tmp_path, name, count):
    lines = (data_dir / name / "manifest.tsv").read_text(encoding="utf-8").split("\n")
    folder = data_dir / name
    rows = [f"{folder}/{line}" for line in lines[1 : count + 1]]
    (tmp_path / "manifest.tsv").write_text("\n".join([lines[0], *rows]), encoding="utf-8")
    paths = prepare_tsv(tmp_path, tmp_path / "out")
    cuts = [cut for path in paths.values() for cut in CutSet.from_file(path)]
    assert len(cuts) == count
    texts = {cut.recording.sources[0].source: cut.supervisions[0].text for cut in cuts}
    for row in rows:
        file, _, _, text = row.split("\t")
        assert texts[file] == text
