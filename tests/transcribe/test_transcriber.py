"""Transcriber: every kind of file that it takes or refuses, and the same numbers as the recipe."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
import yaml

from speechattn import Transcriber
from speechattn.data.augment import CenterCrop
from speechattn.data.batches.batch import collate
from speechattn.data.batches.dataset import SpeechDataset, read_cuts
from speechattn.data.corpora import prepare_tsv
from speechattn.data.crops.roi import Face, MouthCropper, RoiItem, RoiOptions, extract
from speechattn.data.crops.store import CropStore
from speechattn.data.long_form import LongFormOptions
from speechattn.data.media import read_audio
from speechattn.data.tokenizers import CharTokenizer
from speechattn.decoding import CtcGreedySearch, Hypothesis, JointSearch
from speechattn.deploy import packing
from speechattn.errors import ConfigError, MediaError, NoFaceError
from speechattn.model import load_model
from speechattn.model.output import ModelOutput
from speechattn.model.speech_model import SpeechModel
from speechattn.transcribe.recogniser import Recogniser
from speechattn.transcribe.transcript import Transcript
from speechattn.units import UNK_MARK


class Still:
    """A face detector for pictures of noise: the face is always there, unless all is black."""

    def detect(self, frame: np.ndarray) -> list[Face]:
        if frame.max() < 30:
            return []
        height, width = frame.shape[:2]
        points = [(0.35, 0.3), (0.65, 0.3), (0.5, 0.5), (0.38, 0.7), (0.62, 0.7)]
        points = np.array(points, dtype=np.float32) * (width, height)
        return [Face(np.array([0, 0, width, height], np.float32), 1.0, points.astype(np.float32))]


def load(folder: Path, **arguments) -> Transcriber:
    transcriber = Transcriber.from_pretrained(folder, **arguments)
    reader = transcriber.recogniser.reader
    reader.cropper = MouthCropper(reader.cropper.options, Still())
    return transcriber


def mouth(transcriber: Transcriber, path: Path) -> np.ndarray:
    """The mouth crops of a file."""
    with transcriber.recogniser.reader.open(path) as media:
        return np.concatenate(list(media.crops()))


def write_video(path: Path, frames: np.ndarray, wave: np.ndarray | None = None, fps: int = 25):
    """Grey frames (T, H, W), lossless in .mkv and lossy in .mp4, with sound of 16 kHz."""
    lossless = path.suffix == ".mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1" if lossless else "mpeg4", rate=fps)
        video.height, video.width = frames.shape[1:]
        video.pix_fmt = "gray" if lossless else "yuv420p"
        sound = container.add_stream("pcm_s16le" if lossless else "aac", rate=16000)\
            if wave is not None else None  # fmt: skip
        if sound is not None:
            sound.layout = "mono"
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(video.encode(None))
        if sound is not None:
            samples = (wave * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = 16000
            resampler = av.AudioResampler(format=sound.format, layout="mono", rate=16000)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(sound.encode(piece))
            container.mux(sound.encode(None))
    return path


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Face videos a, b, c.mp4 of different lengths, mouth crops, sound, and what is of no use."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for name, frames in (("a", 30), ("b", 51), ("c", 17)):
        wave = 0.2 * rng.standard_normal(640 * frames)
        soundfile.write(folder / f"{name}.flac", wave, 16000)
        pictures = np.repeat(rng.integers(40, 256, (frames, 12, 16), dtype=np.uint8), 6, 1)
        write_video(folder / f"{name}.mp4", np.repeat(pictures, 6, 2), wave)
        crops = rng.integers(0, 256, (frames, 20, 20), dtype=np.uint8)
        np.save(folder / f"{name}.npy", crops)
        write_video(folder / f"{name}.mkv", crops, wave)
    pictures = np.full((10, 72, 96), 200, np.uint8)
    write_video(folder / "mute.mp4", pictures)
    write_video(folder / "dark.mp4", 0 * pictures, wave)
    (folder / "empty.mp4").touch()
    (folder / "truncated.mp4").write_bytes((folder / "b.mp4").read_bytes()[:-3000])
    (folder / "text.mp4").write_text("bin blue at five now\n" * 50)
    (folder / "folder.mp4").mkdir()
    np.save(folder / "colour.npy", np.zeros((3, 20, 20, 3), np.uint8))
    np.save(folder / "float.npy", np.zeros((3, 20, 20)))
    np.save(folder / "none.npy", np.zeros((0, 20, 20), np.uint8))
    np.save(folder / "wide.npy", np.zeros((3, 20, 24), np.uint8))
    np.save(folder / "pickle.npy", np.array([{}]), allow_pickle=True)
    np.savez(folder / "x.npz", crops)
    shutil.move(folder / "x.npz", folder / "archive.npy")
    (folder / "cut.npy").write_bytes((folder / "a.npy").read_bytes()[:900])
    (folder / "zip.npy").write_bytes(b"PK\x03\x04 no archive")
    (folder / "empty.npy").touch()
    return folder


GOOD = {
    "audio": ["a.flac", "a.mp4", "b.mkv", "c.mp4"],
    "video": ["a.mp4", "b.npy", "c.mkv", "c.mp4", "mute.mp4"],
    "av": ["a.mp4", "b.mkv", "c.mp4"],
    "late": ["a.mp4", "b.mkv", "c.mp4"],
}
BAD = {
    "audio": {
        "mute.mp4": "no sound", "empty.mp4": "empty", "truncated.mp4": "truncated",
        "text.mp4": "not media", "gone.wav": "no such file", "folder.mp4": "not a file",
        "a.npy": "",
    },
    "video": {
        "dark.mp4": "no face", "empty.mp4": "empty", "truncated.mp4": "truncated",
        "text.mp4": "not media", "gone.mp4": "no such file", "a.flac": "no video",
        "gone.npy": "No such file", "colour.npy": "uint8", "float.npy": "uint8",
        "none.npy": "uint8", "wide.npy": "square", "pickle.npy": "numpy", "archive.npy": "numpy",
        "cut.npy": "numpy", "zip.npy": "numpy", "empty.npy": "numpy",
    },
    "av": {"dark.mp4": "no face", "mute.mp4": "no sound", "a.flac": "no video", "a.npy": ""},
}  # fmt: skip
BAD["late"] = BAD["av"]  # an audio and a video model together


@pytest.mark.parametrize("modality", GOOD)
def test_good_and_bad_files_together(tiny_model_dir, media, modality):
    transcriber = load(tiny_model_dir(modality))
    good, bad = GOOD[modality], BAD[modality]
    names = [*good[:2], *bad, *good[2:]]
    found = transcriber.transcribe([str(media / name) for name in names], batch_size=3)
    assert [t.id for t in found] == [str(media / name) for name in names]
    for name, transcript in zip(names, found, strict=True):
        if name in good:
            assert transcript.error is None, transcript.error
            check_times(transcript)
        else:
            assert transcript.error.startswith(str(media / name))
            assert bad[name].lower() in transcript.error.lower()
            assert transcript.text == "" and transcript.tokens == []
    assert any(t.text for t in found)


def check_times(transcript: Transcript) -> None:
    previous = 0.0
    for span in transcript.tokens:
        assert previous <= span.start < span.end <= transcript.duration + 1e-6
        assert 0.0 <= span.confidence <= 1.0
        previous = span.end
    written = "".join(t.text for t in transcript.tokens)
    assert written.replace("<space>", " ").replace("<unk>", UNK_MARK) == transcript.text
    assert [w.text for w in transcript.words] == transcript.text.split()
    for word in transcript.words:
        assert any(t.start == word.start for t in transcript.tokens)


@pytest.mark.parametrize("modality", BAD)
def test_a_single_bad_file_raises(tiny_model_dir, media, modality):
    transcriber = load(tiny_model_dir(modality))
    for name, reason in BAD[modality].items():
        with pytest.raises(MediaError, match="(?i)" + reason) as raised:
            transcriber.transcribe(media / name)
        assert str(raised.value).startswith(str(media / name))
    if modality == "video":
        with pytest.raises(NoFaceError):
            transcriber.transcribe(media / "dark.mp4")


@pytest.mark.parametrize("modality", GOOD)
def test_batches_do_not_matter(tiny_model_dir, media, modality):
    transcriber = load(tiny_model_dir(modality))
    paths = [media / name for name in GOOD[modality]]
    alone = [transcriber.transcribe(path) for path in paths]
    assert any(t.text for t in alone)
    for size in (2, 8):
        together = transcriber.transcribe(paths, batch_size=size)
        for one, other in zip(alone, together, strict=True):
            assert (one.id, one.text) == (other.id, other.text)
            assert one.duration == other.duration
            for a, b in zip(one.tokens, other.tokens, strict=True):
                assert (a.text, a.start, a.end) == (b.text, b.start, b.end)
                assert a.confidence == pytest.approx(b.confidence, abs=1e-4)
    assert transcriber.transcribe([]) == []


def test_duration(tiny_model_dir, media):
    for modality, name in (("audio", "a.flac"), ("video", "a.npy"), ("av", "a.mkv")):
        found = load(tiny_model_dir(modality)).transcribe(media / name)
        assert found.duration == pytest.approx(30 / 25)


def test_a_ready_crop_is_taken_as_it_is(tiny_model_dir, media):
    transcriber = load(tiny_model_dir("video"))
    np.testing.assert_array_equal(mouth(transcriber, media / "a.mkv"), np.load(media / "a.npy"))
    from_video, from_array = transcriber.transcribe([media / "a.mkv", media / "a.npy"])
    assert from_video.text == from_array.text
    assert from_video.tokens == from_array.tokens


def test_ready_crops_of_other_sizes(tiny_model_dir, tmp_path):
    """A square of at most 1.5 times the crop's side is scaled; a larger one is a face's picture."""
    transcriber = load(tiny_model_dir("video"))
    rng = np.random.default_rng(0)
    for side, ready in ((30, True), (16, True), (32, False)):
        crops = rng.integers(0, 256, (5, side, side), dtype=np.uint8)
        np.save(tmp_path / "x.npy", crops)
        scaled = mouth(transcriber, tmp_path / "x.npy")
        found = mouth(transcriber, write_video(tmp_path / f"{side}.mkv", crops))
        assert found.shape == scaled.shape == (5, 20, 20)
        assert np.array_equal(found, scaled) == ready


@pytest.mark.parametrize("long", [False, True])
def test_ready_crops_and_scales(tiny_model_dir, media, tmp_path, long):
    """Of the model's scale they are taken as they are; that lack its surroundings, not at all."""
    whole = load(tiny_model_dir("video"))
    seconds = LongFormOptions(1.0, 0.3, max_seconds=1.0) if long else None
    rng = np.random.default_rng(0)
    files = []
    for side in (16, 20, 24):
        np.save(tmp_path / f"{side}.npy", rng.integers(0, 256, (30, side, side), dtype=np.uint8))
        crops = np.load(tmp_path / f"{side}.npy")
        files += [tmp_path / f"{side}.npy", write_video(tmp_path / f"{side}.mkv", crops)]
    for scale, taken in ((24, (24,)), (16, (16, 20, 24))):
        r = whole.recogniser
        options = replace(r.reader.cropper.options, scales=(scale,))
        transcriber = Transcriber(Recogniser(r.model, r.tokenizer, r.search, roi=options), seconds)
        for path, found in zip(files, transcriber.transcribe(files), strict=True):
            if int(path.stem) in taken:
                assert found.error is None and found.duration == pytest.approx(1.2)
                side = scale if int(path.stem) == scale else 20
                assert mouth(transcriber, path).shape == (30, side, side)
            else:
                assert found.error.startswith(f"{path}: mouth crops of {path.stem} pixels")
                assert "24 pixels of the face" in found.error
        exact = np.load(tmp_path / f"{scale}.npy")
        np.testing.assert_array_equal(mouth(transcriber, tmp_path / f"{scale}.mkv"), exact)


def test_ready_crop_at_50_pictures_a_second(tiny_model_dir, media, tmp_path):
    crops = np.repeat(np.load(media / "a.npy"), 2, axis=0)
    path = write_video(tmp_path / "fast.mkv", crops, fps=50)
    found = mouth(load(tiny_model_dir("video")), path)
    np.testing.assert_array_equal(found, np.load(media / "a.npy"))


def test_sound_of_a_video(tiny_model_dir, media, tmp_path):
    transcriber = load(tiny_model_dir("audio"))
    soundfile.write(tmp_path / "b.wav", read_audio(media / "b.mp4"), 16000)
    video, sound = transcriber.transcribe([media / "b.mp4", tmp_path / "b.wav"])
    assert video.text == sound.text


@pytest.mark.parametrize("samples", [1, 399, 500])
def test_sound_shorter_than_a_frame(tiny_model_dir, media, tmp_path, samples):
    path = tmp_path / "click.wav"
    soundfile.write(path, np.full(samples, 0.1), 16000)
    transcriber = load(tiny_model_dir("audio"))
    assert transcriber.transcribe(path).text == ""
    click, other = transcriber.transcribe([path, media / "a.flac"])
    assert click.text == "" and click.error is None
    assert other.text == transcriber.transcribe(media / "a.flac").text


@pytest.mark.parametrize("modality", ["audio", "video", "av", "late"])
def test_recipe_and_application_agree(tiny_model_dir, media, tmp_path, modality):
    """Manifests, ROI stage, crop store and dataset against the raw file: same crops, same text."""
    transcriber = load(tiny_model_dir(modality))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = ["file\tspeaker\tsplit\ttext"]
    for name in "abc":
        shutil.copy(media / f"{name}.mp4", corpus)
        rows.append(f"{name}.mp4\ts{name}\ttest\tabc")
    (corpus / "manifest.tsv").write_text("\n".join(rows) + "\n")
    compare(transcriber, corpus, tmp_path, Still)


def compare(transcriber: Transcriber, corpus: Path, folder: Path, detector) -> None:
    prepare_tsv(corpus, folder / "manifests", workers=1)
    cuts_path = folder / "manifests" / "cuts_test.jsonl.gz"
    recogniser = transcriber.recogniser
    modalities = recogniser.model.modalities
    cuts = read_cuts(cuts_path, ["audio"])
    store = None
    if "video" in modalities:
        items = [RoiItem(cut.id, cut.custom["video"]) for cut in cuts]
        options = recogniser.reader.cropper.options
        extract(items, folder / "crops", options, 0, detector=detector, progress=False)
        store = CropStore(folder / "crops")
    dataset = SpeechDataset(
        read_cuts(cuts_path, modalities, store),
        recogniser.tokenizer,
        modalities,
        store,
        video_transforms=[CenterCrop(recogniser.model.crop_size)],
    )
    batch = collate([dataset[i] for i in range(len(dataset))])
    recipe = recogniser.recognise(batch)
    paths = {cut.id: corpus / f"{Path(cut.custom['video']).name}" for cut in cuts}
    raw = transcriber.transcribe([paths[name] for name in batch.ids])
    assert any(t.text for t in raw)
    for i, (one, other) in enumerate(zip(recipe, raw, strict=True)):
        assert one.text == other.text
        assert one.duration == pytest.approx(other.duration, abs=1e-6)
        with recogniser.reader.open(paths[batch.ids[i]]) as media:
            item = recogniser.reader.read(media)
        if store is not None:
            crops = mouth(transcriber, paths[batch.ids[i]])
            np.testing.assert_array_equal(store.read(batch.ids[i]), crops)
            np.testing.assert_array_equal(dataset[i].video, item.video)
        if "audio" in modalities:
            np.testing.assert_array_equal(dataset[i].audio, item.audio)


def test_recipe_and_application_agree_on_grid(tiny_model_dir, data_dir, tmp_path):
    """With real faces, and the detector that everyone gets."""
    source = data_dir / "grid"
    if not source.is_dir():
        pytest.skip(f"no GRID clips in {source}")
    transcriber = Transcriber.from_pretrained(tiny_model_dir("av"))
    corpus = tmp_path / "corpus"
    (corpus / "video").mkdir(parents=True)
    header, *lines = (source / "manifest.tsv").read_text().splitlines()
    line = next(line for line in lines if line.split("\t")[2] == "test")
    shutil.copy(source / line.split("\t")[0], corpus / "video")
    (corpus / "manifest.tsv").write_text(f"{header}\n{line}\n")
    shutil.copytree(corpus / "video", corpus, dirs_exist_ok=True)
    compare(transcriber, corpus, tmp_path, None)


# ------------------------------------------------------------------------------ other sources


@pytest.mark.parametrize(
    "modality, name", [("audio", "a.flac"), ("video", "a.npy"), ("av", "a.mkv")]
)
def test_bytes_and_open_files(tiny_model_dir, media, modality, name):
    transcriber = load(tiny_model_dir(modality))
    wanted = transcriber.transcribe(media / name)
    content = (media / name).read_bytes()
    assert replace(transcriber.transcribe(content), id=wanted.id) == wanted
    with (media / name).open("rb") as file:
        assert transcriber.transcribe(file) == wanted
    first, second = transcriber.transcribe([content, media / name])
    assert (first.id, first.text) == ("input 0", wanted.text) and second.text == wanted.text
    pair = transcriber.transcribe((media / name, str(media / name)))
    assert [(t.id, t.text) for t in pair] == [(wanted.id, wanted.text)] * 2


class Upload:
    """A file-like of no class of `io`."""

    def __init__(self, content: bytes):
        self.content = content

    def read(self) -> bytes:
        return self.content


def test_file_likes(tiny_model_dir, media):
    transcriber = load(tiny_model_dir("audio"))
    wanted = transcriber.transcribe(media / "a.flac")
    content = (media / "a.flac").read_bytes()
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.seek(0)
        found = transcriber.transcribe(file)
    assert (found.id, found.text) == (file.name, wanted.text)
    assert transcriber.transcribe(Upload(content)).text == wanted.text
    several = transcriber.transcribe((Upload(content), bytearray(content)))
    assert [t.text for t in several] == [wanted.text] * 2


def test_a_file_opened_as_text(tiny_model_dir, tmp_path):
    (tmp_path / "a.txt").write_text("bin blue")
    with (tmp_path / "a.txt").open() as file, pytest.raises(MediaError, match="binary mode"):
        load(tiny_model_dir("audio")).transcribe(file)


def test_bytes_of_no_media_are_named(tiny_model_dir):
    transcriber = load(tiny_model_dir("audio"))
    with pytest.raises(MediaError, match="^input: not media"):
        transcriber.transcribe(b"bin blue at five now" * 50)
    (found,) = transcriber.transcribe([b"bin blue at five now" * 50])
    assert found.error.startswith("input 0: not media")


def test_arrays_and_tensors(tiny_model_dir, media):
    """Sound of the model's rate and of another, of several channels, and with crops."""
    audio, both = load(tiny_model_dir("audio")), load(tiny_model_dir("av"))
    wave, _ = soundfile.read(media / "a.flac", dtype="float32")
    wanted = audio.transcribe(media / "a.flac")
    assert wanted.text
    integers = (wave * 2**15).round().astype(np.int16)
    for source in (
        wave,
        torch.from_numpy(wave),
        torch.from_numpy(wave).requires_grad_(),
        wave.astype(np.float64),
        integers,
        [wave][0][None],
    ):
        assert audio.transcribe(source).text == wanted.text
    stereo = np.stack([wave, wave])
    assert [t.text for t in audio.transcribe([stereo, media / "a.flac"])] == [wanted.text] * 2
    twice = np.repeat(wave, 2)  # at 32 kHz, from which the mean of two is the wave again
    found = audio.transcribe(twice, sample_rate=32000)
    assert found.duration == pytest.approx(wanted.duration, abs=1e-3)
    crops = np.load(media / "a.npy")
    lips = load(tiny_model_dir("video"))
    assert lips.transcribe(crops).text == lips.transcribe(media / "a.npy").text
    assert both.transcribe((wave, crops)).text == both.transcribe(media / "a.mkv").text


def test_long_arrays_are_read_in_windows(tiny_model_dir, tmp_path):
    options = LongFormOptions(window_seconds=2.0, overlap_seconds=0.8, max_seconds=3.0)
    transcriber = Transcriber(load(tiny_model_dir("audio")).recogniser, options)
    wave = (0.2 * np.random.default_rng(0).standard_normal(16000 * 7)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    wanted = transcriber.transcribe(tmp_path / "a.wav")
    assert replace(transcriber.transcribe(wave), id=wanted.id) == wanted


@pytest.mark.parametrize(
    "modality, source, message",
    [
        ("audio", np.zeros((20, 3, 2), np.float32), "channels, n"),
        ("audio", np.zeros((100, 2), np.float32), "transpose"),
        ("audio", np.full(800, np.nan, np.float32), "no numbers"),
        ("audio", np.zeros(800, np.int64), "int64"),
        ("audio", np.zeros((3, 20, 20), np.uint8), "this model takes sound"),
        ("audio", np.zeros(0, np.float32), "no sound in it"),
        ("video", np.zeros((3, 20, 24), np.uint8), "square"),
        ("video", np.zeros(800, np.float32), "this model takes mouth crops"),
        ("av", np.zeros(800, np.float32), "no mouth crops in it"),
    ],
)
def test_arrays_that_are_of_no_use(tiny_model_dir, modality, source, message):
    with pytest.raises(MediaError, match=f"^input: .*({message})"):
        load(tiny_model_dir(modality)).transcribe(source)


def test_what_they_print(tiny_model_dir, media):
    transcriber = load(tiny_model_dir("audio"))
    found = transcriber.transcribe(media / "a.flac")
    assert repr(found.text) in repr(found) and "1.20 s" in repr(found)
    for part in ("audio", "M parameters", "JointSearch", "cpu"):
        assert part in repr(transcriber)


# ------------------------------------------------------------------------------ options


def test_options_of_the_directory(tiny_model_dir):
    folder = tiny_model_dir("video")
    recogniser = Transcriber.from_pretrained(folder).recogniser
    assert recogniser.search == JointSearch(beam_size=3, max_length_ratio=0.3)
    assert recogniser.reader.cropper.options == RoiOptions(size=20, smoothing=3)
    greedy = CtcGreedySearch()
    assert Transcriber.from_pretrained(folder, search=greedy).recogniser.search == greedy
    assert not recogniser.model.training
    assert isinstance(recogniser.model, SpeechModel)


def test_no_directory(tmp_path):
    with pytest.raises(ConfigError, match="no model directory"):
        Transcriber.from_pretrained(tmp_path)


def posteriors(frames: int, v: int) -> list[ModelOutput]:
    log_probs = torch.randn(1, frames, v).log_softmax(-1)
    return [ModelOutput(torch.zeros(1, frames, 1), torch.tensor([frames]), log_probs)]


def test_more_tokens_than_frames(tiny_model_dir, caplog):
    recogniser = load(tiny_model_dir("audio")).recogniser
    outputs = posteriors(2, recogniser.tokenizer.vocab_size)
    found = recogniser.transcript("x", [Hypothesis([2, 3, 2], 0.0)], outputs, 0, 0.1)
    assert found.text == recogniser.tokenizer.decode([2, 3, 2])
    assert found.tokens == [] and found.words == []
    assert "x: no times" in caplog.text


def test_unknown_tokens_are_written_as_in_the_text(tiny_model_dir):
    recogniser = load(tiny_model_dir("audio")).recogniser
    recogniser.tokenizer = CharTokenizer.train(["a bc"])
    tokens = [2, 1, *recogniser.tokenizer.encode(" c"), 1]
    outputs = posteriors(20, recogniser.tokenizer.vocab_size)
    found = recogniser.transcript("x", [Hypothesis(tokens, 0.0)], outputs, 0, 0.8)
    assert UNK_MARK in found.text
    assert [w.text for w in found.words] == found.text.split()


def test_crops_of_another_frame_rate_are_refused(tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir("video"), tmp_path / "model")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["roi"] = {"fps": 30.0}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="roi.fps is 30"):
        Transcriber.from_pretrained(folder)


@pytest.mark.parametrize("modality", ["video", "late"])
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("bf16", 0.2)])
def test_frontend_is_made_ready_for_inference(tiny_model_dir, precision, tolerance, modality):
    """What is loaded computes what was trained, by other means."""
    trained = load_model(tiny_model_dir("video"))
    folder = tiny_model_dir(modality)
    ready = Transcriber.from_pretrained(folder, precision=precision).recogniser.model
    if modality == "late":
        ready = ready.models["video"]
    clips = torch.randint(0, 256, (2, 9, 1, 16, 16), dtype=torch.uint8)
    lengths = torch.tensor([9, 5])
    with torch.inference_mode():
        expected, _ = trained.encode(video=clips, video_lengths=lengths)
        found, _ = ready.encode(video=clips, video_lengths=lengths)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_options_that_do_not_fit_are_refused_before_files_are_read(tiny_model_dir):
    with pytest.raises(ConfigError, match="reverse_weight"):
        Transcriber.from_pretrained(tiny_model_dir("audio"), search=JointSearch(reverse_weight=0.3))


def test_long_files_are_read_in_windows(tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir("audio"), tmp_path / "model")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["long_form"] = {"window_seconds": 2.0, "overlap_seconds": 0.8, "max_seconds": 3.0}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rng = np.random.default_rng(0)
    for name, seconds in (("long", 7.0), ("short", 2.9)):
        wave = 0.2 * rng.standard_normal(int(16000 * seconds))
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000)
    windows, whole = Transcriber.from_pretrained(folder), load(tiny_model_dir("audio"))
    paths = [tmp_path / "long.wav", tmp_path / "gone.wav", tmp_path / "short.wav"]
    long, gone, short = windows.transcribe(paths)
    assert "no such file" in gone.error
    assert short == whole.transcribe(paths[2])
    assert long.duration == pytest.approx(7.0, abs=0.05) and long.error is None
    assert long == windows.transcribe(paths[0])
    starts = [t.start for t in long.tokens]
    assert starts == sorted(starts)
    assert all(t.start <= t.end <= long.duration for t in long.tokens)
    # Something of every part of it, which the windows read on their own.
    assert {int(t.start) for t in long.tokens} >= {0, 3, 6}
    assert whole.transcribe(paths[0]).text != long.text


def test_quantised_layers(tiny_model_dir, media):
    folder = tiny_model_dir("audio")
    same = Transcriber.from_pretrained(folder, quantize="int8")  # its layers are too small
    assert same.transcribe(media / "a.flac") == load(folder).transcribe(media / "a.flac")
    with pytest.raises(ConfigError, match="int4"):
        Transcriber.from_pretrained(folder, quantize="int4")


@pytest.mark.skipif(not packing.PACKS, reason="this torch was built without oneDNN")
@pytest.mark.parametrize("modality", ["av", "late"])
def test_layers_are_packed(tiny_model_dir, media, modality, monkeypatch):
    folder = tiny_model_dir(modality)
    plain = load(folder).transcribe(media / "a.mp4")
    monkeypatch.setattr(packing, "MIN_WEIGHTS", 1)  # its layers are too small
    transcriber = load(folder)
    kinds = [type(m) for m in transcriber.recogniser.model.modules()]
    assert packing.PackedLinear in kinds and torch.nn.Linear not in kinds
    packed = transcriber.transcribe(media / "a.mp4")
    assert packed.text == plain.text
    assert [t.start for t in packed.tokens] == [t.start for t in plain.tokens]
    assert packed.confidence == pytest.approx(plain.confidence, abs=1e-4)
