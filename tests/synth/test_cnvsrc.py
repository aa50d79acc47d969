"""The Mandarin corpus in CNVSRC's layout: every file where it belongs, damaged ones damaged."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader", reason="needs espeakng-loader")

from speechattn.errors import ConfigError
from speechattn.synth import synth_cnvsrc
from speechattn.synth.damage import DAMAGE

OPTIONS = dict(clips=16, speakers=4, seed=5, progress=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth") / "cnvsrc"
    return folder, synth_cnvsrc(folder, workers=1, **OPTIONS)


def damaged(folder):
    header, *rows = (folder / "damaged.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "path\tkind"
    return {kind: folder / path for path, kind in (row.split("\t") for row in rows)}


def lists(folder):
    """(dataset, share) -> rows of (path below the dataset, frames, ids)."""
    out = {}
    for path in sorted(folder.glob("*/*.csv")):
        rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
        assert all(len(row) == 4 and row[0] == path.parent.name for row in rows)
        out[path.parent.name, path.stem] = [(r[1], int(r[2]), r[3].split()) for r in rows]
    return out


def units(folder):
    rows = [x.split() for x in (folder / "char_units.txt").read_text("utf-8").splitlines()]
    assert rows[0] == ["<unk>", "1"] and [int(n) for _, n in rows] == list(range(1, len(rows) + 1))
    return {number: unit for unit, number in rows}


def frames_of(path):
    with av.open(str(path)) as container:
        return [f for f in container.decode(video=0)]


def infos(folder, dataset, part):
    return json.loads((folder / dataset / f"{dataset}-{part}-infos.json").read_text("utf-8"))


def test_lists_json_text_sound_and_video_agree(corpus):
    folder, summary = corpus
    bad = {p for kind, p in damaged(folder).items()}
    names, found, seconds = units(folder), 0, 0.0
    rows = lists(folder)
    assert set(rows) == {
        *(("cncvs", s) for s in ("train", "valid", "test")),
        *((d, s) for d in ("cnvsrc-single", "cnvsrc-multi") for s in ("train", "valid")),
    }
    for (dataset, _), clips in rows.items():
        for relative, frames, ids in clips:
            video = folder / dataset / relative
            stem, part = video.stem, video.parents[1]
            audio, text = part / "audio" / f"{stem}.wav", part / "text" / f"{stem}.txt"
            seconds += frames / 25
            if bad & {video, audio, text}:
                continue
            found += 1
            with av.open(str(video)) as container:
                assert [s.type for s in container.streams] == ["video"]
                stream = container.streams.video[0]
                assert (stream.width, stream.height, stream.average_rate) == (224, 224, 25)
            assert len(frames_of(video)) == frames
            samples, rate = soundfile.read(audio)
            assert rate == 16000 and samples.ndim == 1 and len(samples) == frames * 640
            assert 0.02 < np.sqrt(np.mean(samples**2)) < 0.3
            assert 1.5 <= frames / 25 <= 5
            written = "".join(names[i] for i in ids)
            assert 6 <= len(written) <= 10
            if dataset == "cncvs":
                assert text.read_text(encoding="utf-8") == written + "\n"
            else:
                info = infos(folder, dataset, "dev")[stem]
                assert info["text"] == written
                assert info["frames"] == frames and info["duration"] == frames / 25
                speaker = "s01" if dataset == "cnvsrc-single" else stem[:4]
                assert info["speaker"] == speaker
    for dataset in ("cnvsrc-single", "cnvsrc-multi"):
        held_out = infos(folder, dataset, "eval")
        videos = sorted(folder.glob(f"{dataset}/eval/*/*"))
        assert {p.stem for p in videos} == set(held_out)
        for video in videos:
            with av.open(str(video)) as container:
                assert [s.type for s in container.streams] == ["video", "audio"]
            found += 1
            seconds += held_out[video.stem]["duration"]
    assert found == 16 and summary.clips == summary.written == 16 + len(DAMAGE)
    assert summary.seconds == pytest.approx(seconds)
    assert not list(folder.rglob(".part*"))
    assert json.loads((folder / "synthetic.json").read_text("utf-8"))["synthetic"] is True


def test_no_sentence_of_an_evaluation_set_is_in_training(corpus):
    folder, _ = corpus
    names = units(folder)
    texts = ["".join(names[i] for i in ids) for rows in lists(folder).values() for *_, ids in rows]
    for dataset in ("cnvsrc-single", "cnvsrc-multi"):
        texts += [info["text"] for info in infos(folder, dataset, "eval").values()]
    texts = [text for text in texts if text]
    assert len(texts) == len(set(texts)) == 16 + len(DAMAGE) - 1


def test_every_kind_of_damage_is_what_it_says(corpus):
    folder, _ = corpus
    bad = damaged(folder)
    assert set(bad) == set(DAMAGE)
    for kind in ("truncated", "zero-byte"):
        with pytest.raises(av.FFmpegError):
            av.open(str(bad[kind]))
    assert bad["truncated"].stat().st_size > 1000 and bad["zero-byte"].stat().st_size == 0
    assert not bad["missing"].exists()
    with av.open(str(bad["no-picture"])) as container:
        assert [s.type for s in container.streams] == ["audio"]
    with av.open(str(bad["truncated-late"])) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # else pictures in flight are lost with the bad packet
        stated, read = stream.frames, 0
        try:
            for _ in container.decode(stream):
                read += 1
        except av.FFmpegError:
            pass
    assert 0 < read < 0.8 * stated
    two = frames_of(bad["two-faces"])[5].to_ndarray(format="rgb24")
    assert two.shape == (224, 448, 3)
    for kind, fps in (("frame-rate", 30), ("time-stamps", 50)):
        frames = frames_of(bad[kind])
        assert frames[1].time == pytest.approx(1 / fps, abs=1e-3)
        audio = bad[kind].parents[1] / "audio" / f"{bad[kind].stem}.wav"
        ratio = len(frames) / fps / soundfile.info(audio).duration
        assert ratio == pytest.approx(1.0 if fps == 30 else 0.5, abs=0.03)
    assert bad["empty-transcript"].read_text("utf-8").strip() == ""
    assert not bad["non-ascii-name"].name.isascii() and frames_of(bad["non-ascii-name"])
    assert not bad["audio-missing"].exists()
    assert (bad["audio-missing"].parents[1] / "video").is_dir()
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.info(bad["damaged-audio"])
    # Each is in a list, so a recipe meets it.
    listed = {folder / d / r[0] for (d, _), rows in lists(folder).items() for r in rows}
    for path in bad.values():
        assert path.parents[1] / "video" / f"{path.stem}.mp4" in listed


def test_what_is_missing_is_made_again(corpus, tmp_path):
    folder, summary = corpus
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    whole = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    victim = next((other / "cnvsrc-multi/eval/video").iterdir())
    victim.rename(victim.with_name(f".part1.{victim.name}"))  # as a killed run leaves it
    (other / "damaged.tsv").unlink()
    again = synth_cnvsrc(other, workers=1, **OPTIONS)
    assert again.written == 1 and again.seconds == summary.seconds
    assert whole == {p.relative_to(other): p.read_bytes() for p in other.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="another"):
        synth_cnvsrc(other, workers=1, **{**OPTIONS, "seed": 6})


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_and_an_interrupted_run_goes_on(corpus, tmp_path):
    folder, summary = corpus
    whole = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    other = tmp_path / "other"
    command = (
        "from speechattn.synth import synth_cnvsrc\n"
        f"if __name__ == '__main__': synth_cnvsrc({str(other)!r}, workers=2, **{OPTIONS!r})\n"
    )
    script = tmp_path / "make.py"
    script.write_text(command, encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(other.rglob("[!.]*.mp4"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    there = len(list(other.rglob("[!.]*.mp4")))
    assert 4 <= there < 28 and not (other / "damaged.tsv").exists()
    again = synth_cnvsrc(other, workers=1, **OPTIONS)
    assert again.written <= summary.clips - there and again.seconds == summary.seconds
    assert whole == {p.relative_to(other): p.read_bytes() for p in other.rglob("*") if p.is_file()}


def test_bad_requests_are_named(tmp_path):
    with pytest.raises(ConfigError, match="clips: 3"):
        synth_cnvsrc(tmp_path, clips=3)
    with pytest.raises(ConfigError, match="speakers: 2"):
        synth_cnvsrc(tmp_path, speakers=2)
    assert not list(tmp_path.iterdir())
