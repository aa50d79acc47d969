"""Long files: their windows, and the same result as in one piece where there is one."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from speechattn import Transcriber
from speechattn.data.long_form import LongFormOptions
from speechattn.errors import ConfigError, MediaError
from speechattn.transcribe.long_files import common_step, transcribe_long, windows
from speechattn.transcribe.silence import quiet_place
from speechattn.transcribe.transcript import Span, Transcript

SHORT = LongFormOptions(window_seconds=2.0, overlap_seconds=0.8, batch_size=3, max_seconds=2.0)


@pytest.fixture
def load(tiny_model_dir):
    return lambda modality: Transcriber.from_pretrained(tiny_model_dir(modality)).recogniser


def opened(recogniser, path):
    """A file as long files are read."""
    with recogniser.reader.open(path) as media:
        return media


def transcribe(recogniser, path, options=SHORT):
    return transcribe_long(recogniser, opened(recogniser, path), options)


@pytest.fixture
def media(tmp_path):
    """A function of seconds that writes sound and crops of as long."""

    def write(seconds):
        rng = np.random.default_rng(round(seconds * 100))
        wave = 0.2 * rng.standard_normal(round(seconds * 16000))
        soundfile.write(tmp_path / "a.wav", wave, 16000)
        crops = rng.integers(0, 256, (round(seconds * 25), 20, 20), dtype=np.uint8)
        np.save(tmp_path / "a.npy", crops)
        return tmp_path

    return write


@pytest.mark.parametrize("seconds", [0.02, 0.6, 1.99, 2.0])
@pytest.mark.parametrize("modality", ["audio", "video"])
def test_a_file_that_fits_into_a_window(load, media, modality, seconds):
    path = media(max(seconds, 0.04)) / ("a.wav" if modality == "audio" else "a.npy")
    recogniser = load(modality)
    assert transcribe(recogniser, path) == Transcriber(recogniser).transcribe(path)


@pytest.mark.parametrize("seconds", [2.004, 2.5, 3.2, 5.01, 9.7])
@pytest.mark.parametrize("modality", ["audio", "video"])
def test_windows_cover_the_file(load, media, modality, seconds):
    path = media(seconds) / ("a.wav" if modality == "audio" else "a.npy")
    if modality == "video" and seconds == 2.004:
        pytest.skip("25 pictures a second make 2 s of it")
    recogniser = load(modality)
    whole = recogniser.reader.read(opened(recogniser, path))
    whole = whole.audio if modality == "audio" else whole.video
    rate = 16000 if modality == "audio" else 25
    found = list(windows(recogniser, opened(recogniser, path), SHORT))
    assert found[0].start == 0 and found[-1].end == pytest.approx(len(whole) / rate)
    assert [w.last for w in found] == [False] * (len(found) - 1) + [True]
    for window in found:
        part = window.item.audio if modality == "audio" else window.item.video
        first = round(window.start * rate)
        np.testing.assert_array_equal(part, whole[first : round(window.end * rate)])
        # On a hidden frame, and as long as the others: the last one to within a frame.
        assert Fraction(first, rate) % Fraction(1, 25) == 0
        assert 1.96 < window.end - window.start < 2.0 + 1e-9
    for before, after in zip(found, found[1:], strict=False):
        assert before.end - after.start >= 0.8 - 1e-9


def test_windows_of_sound_and_pictures(load, media, monkeypatch):
    """Both are cut at the same moments, and the sound fitted to the pictures."""
    folder = media(5.0)
    recogniser = load("late")
    video = SimpleNamespace(has_video=True, width=64, height=48)
    monkeypatch.setattr("speechattn.data.reader.probe", lambda path: video)
    crops = np.array_split(np.load(folder / "a.npy"), 7)
    recogniser.reader.cropper.stream = lambda path: iter(crops)
    soundfile.write(folder / "a.wav", soundfile.read(folder / "a.wav")[0][:79000], 16000)
    audio = np.pad(soundfile.read(folder / "a.wav", dtype="float32")[0], (0, 1000))
    found = list(windows(recogniser, opened(recogniser, folder / "a.wav"), SHORT))
    assert found[-1].end == 5
    for window in found:
        start, frames = round(window.start * 25), len(window.item.video)
        assert window.item.video.shape[1:] == (16, 16)
        crops = np.load(folder / "a.npy")[start : start + frames, 2:18, 2:18]
        np.testing.assert_array_equal(window.item.video, crops)
        np.testing.assert_array_equal(
            window.item.audio, audio[start * 640 : (start + frames) * 640]
        )


def test_no_more_is_read_than_a_batch_needs(load, media, monkeypatch):
    """Memory: what is kept of the file does not grow with it."""
    from speechattn.data.media import Rolling, sound

    monkeypatch.setattr(sound, "_BLOCK", 4000)
    kept = []
    fill = Rolling.fill
    monkeypatch.setattr(
        Rolling, "fill", lambda self, stop: (fill(self, stop), kept.append(self.end - self.start))
    )
    recogniser = load("audio")
    for _ in windows(recogniser, opened(recogniser, media(30.0) / "a.wav"), SHORT):
        pass
    assert max(kept) < 16000 * 4


class Perfect:
    """Stands for a model: knows what is said when, and errs by frames and at borders."""

    def __init__(self, recogniser, words, jitter=3):
        self.model, self.tokenizer = recogniser.model, recogniser.tokenizer
        self.reader, self.timed_transcript = recogniser.reader, recogniser.timed_transcript
        self.words, self.rng, self.jitter = words, np.random.default_rng(0), jitter
        self.batches = []

    def recognise(self, batch):
        self.batches.append(len(batch))
        found = []
        for name, samples in zip(batch.ids, batch.audio_lengths.tolist(), strict=True):
            start, seconds = float(name.split()[-2]), samples / 16000
            tokens = []
            for text, at in self.words:
                moved = at - start + 0.04 * self.rng.integers(-self.jitter, self.jitter + 1)
                if 0.15 < at - start < seconds - 0.15:
                    tokens.append(Span(text, moved, moved + 0.04, 0.5))
            found.append(Transcript(name, "", tokens, [], 0.5, seconds))
        return found


def test_everything_is_said_once(load, media, monkeypatch):
    """Also in the last, shorter batch; times are of the file."""
    recogniser = load("audio")
    # The tiny model spells in letters, which would run together to one word.
    monkeypatch.setattr("speechattn.decoding.alignment.is_ideograph", lambda c: True)
    rng = np.random.default_rng(1)
    words = [("abc"[rng.integers(3)], at) for at in np.arange(0.3, 29.6, 0.5)]
    reader = Perfect(recogniser, words, jitter=2)
    long = LongFormOptions(window_seconds=4, overlap_seconds=1.6, batch_size=3)
    found = transcribe(reader, media(30.01) / "a.wav", long)
    assert found.text == "".join(text for text, _ in words)
    assert [w.text for w in found.words] == [text for text, _ in words]
    np.testing.assert_allclose([w.start for w in found.words], [at for _, at in words], atol=0.09)
    assert found.confidence == pytest.approx(0.5) and found.duration == pytest.approx(30.01)
    assert found.id.endswith("a.wav") and reader.batches == [3, 3, 3, 3]


def test_text_without_times_is_kept(load, media):
    """An attention search can say more than CTC has frames for."""
    reader = Perfect(load("audio"), [])
    reader.recognise = lambda batch: [Transcript(n, "abc", [], [], 0.0, 2.0) for n in batch.ids]
    found = transcribe(reader, media(6.8) / "a.wav")
    assert found.text.count("abc") >= 3


def test_lengths_that_files_state(load, media):
    folder, sound, lips = media(2.5), load("audio"), load("video")
    assert opened(sound, folder / "a.wav").duration() == pytest.approx(2.5)
    assert opened(lips, folder / "a.npy").duration() == pytest.approx(62 / 25)
    for name in ("gone.wav", "gone.npy"):
        assert opened(sound, folder / name).duration() == 0


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_files_of_no_use(load, tmp_path, modality):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp4").write_text("bin blue " * 100)
    np.save(tmp_path / "float.npy", np.zeros((3, 20, 20)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "float.npy").read_bytes()[:900])
    for name in ("empty.wav", "text.mp4", "gone.wav", "float.npy", "cut.npy"):
        with pytest.raises(MediaError, match=name):
            transcribe(load(modality), tmp_path / name)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"window_seconds": 0.0}, "window_seconds"),
        ({"overlap_seconds": 11.0}, "overlap_seconds"),
        ({"overlap_seconds": 0.0}, "overlap_seconds"),
        ({"batch_size": 0}, "batch_size"),
        ({"silence_seconds": 5.0}, "silence_seconds"),
        ({"max_seconds": 10.0}, "max_seconds"),
    ],
)
def test_options_that_do_not_fit(values, key):
    with pytest.raises(ConfigError, match=key):
        LongFormOptions(**values)


def test_step_of_several_rates():
    class Model:
        frame_shift, video_fps, sample_rate, modalities = 0.04, 30.0, 16000, ("audio", "video")

    assert common_step(Model()) == Fraction(1, 5)
    Model.frame_shift, Model.video_fps = 0.08, 25.0
    assert common_step(Model()) == Fraction(2, 25)
    Model.modalities, Model.frame_shift = ("audio",), 0.03
    assert common_step(Model()) == Fraction(3, 100)


def speech(spans, seconds):
    """Noise as loud as speech in some spans, and softer between."""
    rng = np.random.default_rng(0)
    sound = 0.002 * rng.standard_normal(round(16000 * seconds)).astype(np.float32)
    for start, end in spans:
        sound[round(start * 16000) : round(end * 16000)] *= 100
    return sound


def test_quiet_places():
    sound = speech([(0.5, 2.0), (2.3, 4.0), (4.6, 6.0)], 6)
    assert quiet_place(sound, 16000, 1.0, 0.3) == pytest.approx(4.3, abs=0.03)
    assert quiet_place(sound, 16000, 0.0, 0.2) == pytest.approx(4.3, abs=0.03)
    assert quiet_place(sound, 16000, 4.9, 0.3) is None
    assert quiet_place(sound, 16000, 1.0, 0.9) is None
    assert quiet_place(sound * 0, 16000, 1.0, 0.3) is None
    assert quiet_place(sound[:100], 16000, 0.0, 0.3) is None


def test_windows_that_end_at_silence(load, tmp_path):
    sound = speech([(0, 2.4), (2.8, 4.2), (4.4, 9.8)], 10)
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
    options = LongFormOptions(3, 1.4, at_silence=True, silence_seconds=0.15)
    recogniser = load("audio")
    media = opened(recogniser, tmp_path / "a.wav")
    found = [(w.start, w.end) for w in windows(recogniser, media, options)]
    # No silence in the third, so the fourth overlaps it.
    np.testing.assert_allclose(
        found, [(0, 2.6), (2.6, 4.32), (4.32, 7.32), (5.92, 8.92), (7.0, 10)], atol=0.05
    )
    assert torch.is_inference_mode_enabled() is False
