"""The files of the synthetic corpus: GRID's layout, playable, reproducible, resumable."""

import json

import av
import numpy as np
import pytest

pytest.importorskip("espeakng_loader", reason="needs espeakng-loader")

from speechattn.errors import ConfigError
from speechattn.synth import synth_corpus
from speechattn.synth.corpus import make_clip
from speechattn.synth.sentences import make_sentence
from speechattn.synth.visemes import PARAMETERS


@pytest.fixture(scope="module", params=["en", "cmn"])
def corpus(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth") / request.param
    summary = synth_corpus(
        folder, request.param, speakers=2, utterances=2, seed=7, workers=1, progress=False
    )
    return folder, summary, request.param


def read(path):
    """Frames (T, H, W, 3), sound (N,), the video's time stamps (T,), its rate."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        rate = container.streams.video[0].average_rate
        codecs = [s.codec_context.name for s in container.streams]
    with av.open(str(path)) as container:
        sound = list(container.decode(audio=0))
    assert codecs[0] == "h264" and codecs[1] == "aac"
    assert {(s.sample_rate, s.layout.name) for s in sound} == {(16000, "mono")}
    samples = np.concatenate([s.to_ndarray()[0] for s in sound])
    pictures = np.stack([f.to_ndarray(format="bgr24") for f in frames])
    return pictures, samples, np.array([f.time for f in frames]), rate


def test_layout_and_marker(corpus):
    folder, summary, language = corpus
    assert summary.clips == summary.written == 4 and summary.speakers == ("s1", "s2")
    for speaker in ("s1", "s2"):
        names = {p.stem for p in (folder / speaker).iterdir()}
        assert {p.name for p in (folder / speaker).iterdir()} == {f"{n}.mp4" for n in names}
        assert {p.name for p in (folder / "align" / speaker).iterdir()} == {
            f"{n}.align" for n in names
        }
        assert {p.name for p in (folder / "landmarks" / speaker).iterdir()} == {
            f"{n}.npz" for n in names
        }
    marker = json.loads((folder / "synthetic.json").read_text(encoding="utf-8"))
    assert marker["synthetic"] is True and marker["seed"] == 7 and "eSpeak" in marker["generator"]
    assert marker["language"] == language
    assert "SYNTHETIC" in (folder / "README.md").read_text(encoding="utf-8").splitlines()[0]


def test_media_align_and_landmarks_agree(corpus):
    folder, summary, _ = corpus
    total = 0.0
    for path in folder.glob("s*/*.mp4"):
        pictures, samples, times, rate = read(path)
        assert rate == 25 and pictures.shape[1:] == (288, 360, 3)
        np.testing.assert_allclose(times, np.arange(len(times)) / 25, atol=1e-3)
        seconds = len(pictures) / 25
        assert 1.5 < seconds < 4.0
        assert -1e-3 <= len(samples) / 16000 - seconds < 0.065  # AAC fills its last packet
        relative = path.relative_to(folder).with_suffix("")
        with np.load(folder / "landmarks" / f"{relative}.npz") as file:
            landmarks = file["landmarks"]
        assert landmarks.shape == (len(pictures), 5, 2) and landmarks.dtype == np.float32
        rows = [
            line.split()
            for line in (folder / "align" / f"{relative}.align")
            .read_text(encoding="utf-8")
            .splitlines()
        ]
        assert len(rows) == 8 and rows[0][2] == rows[-1][2] == "sil"
        edges = [int(r[0]) for r in rows] + [int(rows[-1][1])]
        assert edges == sorted(edges) and edges[0] == 0
        assert [int(r[1]) for r in rows] == edges[1:]
        assert edges[-1] == pytest.approx(seconds * 25000, abs=1)
        # The words are where the sound is.
        level = np.sqrt(np.convolve(samples**2, np.ones(800) / 800, "same"))
        loud = np.flatnonzero(level > 0.1 * level.max()) / 16000
        assert loud[0] == pytest.approx(edges[1] / 25000, abs=0.12)
        assert loud[-1] == pytest.approx(edges[-2] / 25000, abs=0.15)
        total += seconds
    assert summary.seconds == pytest.approx(total, abs=1e-3)


def test_workers_do_not_change_a_byte_and_missing_files_are_made_again(corpus, tmp_path):
    folder, _, language = corpus
    if language == "en":
        pytest.skip("the other language does it: starting processes takes seconds")
    options = dict(speakers=2, utterances=2, seed=7, progress=False)
    synth_corpus(tmp_path, language, workers=2, **options)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*.*") if p.is_file())
    assert len(files) == 14
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes(), file
    victim = next((tmp_path / "s2").glob("*.mp4"))
    content = victim.read_bytes()
    victim.unlink()
    assert synth_corpus(tmp_path, language, workers=1, **options).written == 1
    assert victim.read_bytes() == content
    with pytest.raises(ConfigError, match="another"):
        synth_corpus(tmp_path, language, workers=1, **{**options, "seed": 8})


def test_seed_and_speaker_change_sound_and_picture():
    sentence = make_sentence("en", (0, 1, 2, 3, 4, 3))
    one, two, other = (make_clip(sentence, "en", *a, index=0) for a in ((0, 0), (0, 1), (1, 0)))
    assert one.speech.words != two.speech.words
    for clip in (two, other):
        assert np.abs(one.frames[0].astype(float) - clip.frames[0]).mean() > 8
        assert len(one.speech.samples) != len(clip.speech.samples)


@pytest.mark.parametrize("language", ["en", "cmn"])
def test_lips_meet_on_film_when_a_bilabial_is_heard(language):
    """In pixels: no dark hole between the lips at a p, b or m; a large one in open vowels."""
    choice = (2, 0, 1, 1, 1, 2) if language == "en" else (0, 2, 1, 7, 2, 6)
    clip = make_clip(make_sentence(language, choice), language, 0, 1, index=0)
    opening = clip.track[:, PARAMETERS.index("opening")]
    times = np.arange(len(opening)) / 25
    holes = []
    for frame, points in zip(clip.frames, clip.landmarks, strict=True):
        x, y = points[3:].mean(axis=0).astype(int)
        holes.append((frame[y - 6 : y + 18, x - 20 : x + 20].max(axis=2) < 75).sum())
    holes = np.array(holes)
    bilabials = [p for p in clip.speech.phones if p.symbol in {"p", "b", "m"}]
    assert len(bilabials) >= 3
    for phone in bilabials:
        near = (times > phone.start - 0.08) & (times < phone.end + 0.04)
        assert opening[near].min() == 0.0
        assert holes[near & (opening == 0)].max() <= 0.2 * holes.max()
    assert holes[opening > 0.5].mean() > 50  # of some, a raised tongue fills the hole
