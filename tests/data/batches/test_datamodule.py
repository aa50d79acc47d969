"""Cuts, crops and transforms into batches."""

import logging

import numpy as np
import pytest
import torch
from lhotse import CutSet

from speechattn.data.augment import CenterCrop, ClipTransform, RandomCrop, SpeedPerturb
from speechattn.data.batches import DataOptions
from speechattn.data.batches.cut_table import has_audio
from speechattn.data.batches.datamodule import SpeechData
from speechattn.data.batches.dataset import SpeechDataset, cut_text, load_audio, read_cuts
from speechattn.data.crops.store import CropStore, CropWriter
from speechattn.data.media import fit_audio
from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError, MediaError

AV = ("audio", "video")


class Draw(ClipTransform):
    """Replaces the clip by what chance gives it."""

    def __call__(self, clip, generator):
        return np.full(3, float(torch.rand((), generator=generator)), dtype=np.float32)


@pytest.fixture
def parts(tiny_corpus):
    """Cuts, tokenizer, crop store."""
    folder = tiny_corpus.folder
    store = CropStore(folder / "crops")
    cuts = read_cuts(folder / "cuts_train.jsonl.gz", AV, store)
    return cuts, Tokenizer.load(folder / "tokens"), store


def make_data(tiny_corpus, modalities=AV, **options) -> SpeechData:
    folder = tiny_corpus.folder
    return SpeechData(
        DataOptions(num_workers=0, **options),
        folder / "cuts_train.jsonl.gz",
        folder / "cuts_dev.jsonl.gz",
        Tokenizer.load(folder / "tokens"),
        modalities=modalities,
        crops=folder / "crops" if "video" in modalities else None,
        crop_size=16,
    )


def test_items(parts, tiny_corpus):
    cuts, tokenizer, store = parts
    dataset = SpeechDataset(cuts, tokenizer, AV, store)
    assert len(dataset) == 8
    for i, cut in enumerate(cuts):
        item = dataset[i]
        assert item.id == cut.id
        assert item.text == tiny_corpus.texts[cut.id]
        assert tokenizer.decode(item.tokens) == item.text
        np.testing.assert_array_equal(item.video, store.read(cut.id))
        np.testing.assert_array_equal(item.audio, cut.load_audio()[0])
        assert item.audio.dtype == np.float32
        assert len(item.audio) == 640 * len(item.video)


@pytest.mark.parametrize("modality", AV)
def test_loads_what_is_needed(parts, modality):
    cuts, tokenizer, store = parts
    item = SpeechDataset(cuts, tokenizer, [modality], store)[0]
    assert (item.audio is None) == (modality == "video")
    assert (item.video is None) == (modality == "audio")


def test_sound_ends_with_the_lips(parts):
    """A cut that is longer or shorter than its crops."""
    cuts, tokenizer, store = parts
    frames = len(store.read(cuts[0].id))
    short = cuts[0].truncate(duration=0.3, preserve_id=True)
    item = SpeechDataset([short], tokenizer, AV, store)[0]
    assert len(item.audio) == 640 * frames
    assert item.audio[:4800].any() and not item.audio[4800:].any()
    longer = cuts[0].pad(duration=5.0, preserve_id=True)
    assert len(SpeechDataset([longer], tokenizer, AV, store)[0].audio) == 640 * frames
    # Without lips nothing is cut.
    assert len(SpeechDataset([short], tokenizer, ["audio"])[0].audio) == 4800


def test_fit_audio():
    np.testing.assert_array_equal(fit_audio(np.arange(5), 3), [0, 1, 2])
    np.testing.assert_array_equal(fit_audio(np.arange(1, 3), 4), [1, 2, 0, 0])


def test_resamples(parts):
    cuts, *_ = parts
    assert load_audio(cuts[0], 8000).shape == (cuts[0].num_samples // 2,)


def test_chance_depends_on_seed_epoch_and_cut_alone(parts):
    cuts, tokenizer, _ = parts

    def draws(order, epoch=0, seed=0):
        some = [cuts[i] for i in order]
        dataset = SpeechDataset(some, tokenizer, ["audio"], audio_transforms=[Draw()], seed=seed)
        dataset.epoch = epoch
        return {dataset[i].id: float(dataset[i].audio[0]) for i in range(len(some))}

    first = draws(range(8))
    assert first == draws(reversed(range(8)))
    assert len(set(first.values())) == 8
    for other in (draws(range(8), epoch=1), draws(range(8), seed=1)):
        assert not set(first.values()) & set(other.values())


def test_several_supervisions(parts):
    cuts, *_ = parts
    joined = cuts[0].append(cuts[1])
    assert cut_text(joined) == f"{cut_text(cuts[0])} {cut_text(cuts[1])}"


@pytest.mark.parametrize("scale", [None, 16])
def test_crops_smaller_than_the_model_sees(tiny_corpus, tmp_path, scale):
    """Skipped and listed like any file that cannot be used, by the name of its cut."""
    whole = CropStore(tiny_corpus.folder / "crops")
    names = list(tiny_corpus.texts)
    with CropWriter(tmp_path) as writer:
        for name in names:
            frames = whole.read(name)
            writer.add(name, frames[:, :12, :12] if name == names[3] else frames, 25.0)
    data = make_data(tiny_corpus, ["video"], scale=scale)
    data.train.crops = CropStore(tmp_path)
    ids = [cut.id for cut in data.train.cuts]
    with pytest.raises(MediaError, match=f"{names[3]}: .*12x12 have no 16x16 square"):
        data.train[ids.index(names[3])]
    batches = list(data.train_dataloader())
    assert sorted(i for b in batches for i in b.ids) == sorted(set(ids) - {names[3]})
    (failed,) = [text for b in batches for text in b.failed]
    assert failed.startswith(f"{names[3]}: ")


# ------------------------------------------------------------------------------ read_cuts


def test_cuts_without_crops_or_sound_are_reported(parts, tmp_path, caplog, tiny_corpus):
    cuts, _, store = parts
    lost = cuts[0].with_id("s0_lost")
    mute = cuts[1].with_features_path_prefix("")
    mute.custom = {"has_audio": False}
    path = tmp_path / "cuts.jsonl.gz"
    CutSet.from_cuts([lost, mute, *cuts[2:4]]).to_file(path)
    with caplog.at_level(logging.WARNING):
        found = read_cuts(path, AV, store)
    assert [c.id for c in found] == [c.id for c in cuts[2:4]]
    assert "2 of 4 cuts left out" in caplog.text and "s0_lost" in caplog.text
    assert [c.id for c in read_cuts(path, ["video"], store)] == [c.id for c in cuts[1:4]]
    assert len(read_cuts(path, ["audio"])) == 3
    assert not has_audio(mute)


def test_unusable_manifests(parts, tmp_path):
    cuts, _, store = parts
    path = tmp_path / "cuts.jsonl.gz"
    with pytest.raises(ConfigError, match="no such manifest"):
        read_cuts(path, AV, store)
    CutSet.from_cuts([cuts[0].with_id("x")]).to_file(path)
    with pytest.raises(ConfigError, match="no cut has video"):
        read_cuts(path, ["video"], store)
    with pytest.raises(ConfigError, match="--crops"):
        read_cuts(path, ["video"])


# ------------------------------------------------------------------------------ batches


def test_training_batches(tiny_corpus):
    data = make_data(tiny_corpus, batch_seconds=3.0)
    seen = []
    for batch in data.train_dataloader():
        seen += batch.ids
        longest = int(batch.video_lengths.max())
        assert len(batch) * longest / 25 <= 3.0
        assert batch.video.shape == (len(batch), longest, 1, 16, 16)
        assert batch.audio.shape == (len(batch), longest * 640)
        assert batch.audio_lengths.tolist() == (batch.video_lengths * 640).tolist()
    assert sorted(seen) == sorted(list(tiny_corpus.texts)[:8])


def test_validation_is_the_same_every_time(tiny_corpus):
    data = make_data(tiny_corpus, audio_transforms=[Draw()], video_transforms=[RandomCrop(16)])
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    assert [b.ids for b in first] == [b.ids for b in second]
    assert sorted(i for b in first for i in b.ids) == sorted(list(tiny_corpus.texts)[8:])
    store = CropStore(tiny_corpus.folder / "crops")
    for name, clip, n in zip(first[0].ids, first[0].video, first[0].video_lengths, strict=True):
        np.testing.assert_array_equal(clip[:n, 0], CenterCrop(16)(store.read(name)))
    assert first[0].audio.shape[1] > 3


def test_batches_do_not_depend_on_the_workers(tiny_corpus):
    """Also: crops and transforms survive the trip into a process."""
    epochs = []
    for workers in (0, 2):
        data = make_data(tiny_corpus, batch_seconds=3.0, video_transforms=[RandomCrop(16)])
        object.__setattr__(data.options, "num_workers", workers)
        epochs.append(list(data.train_dataloader()))
    for one, other in zip(*epochs, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.video, other.video)
        assert torch.equal(one.audio, other.audio)


def test_long_utterances_are_left_out(tiny_corpus, caplog):
    with caplog.at_level(logging.WARNING):
        data = make_data(tiny_corpus, max_seconds=1.0)
    assert 0 < len(data.train) < 8
    assert all(cut.duration <= 1.0 for cut in data.train.cuts)
    assert f"{8 - len(data.train)} of 8 cuts" in caplog.text
    assert len(data.valid) == 2
    with pytest.raises(ConfigError, match="max_seconds"):
        make_data(tiny_corpus, max_seconds=0.1)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_speed_changes_lips_and_sound_alike(parts, factor):
    cuts, tokenizer, store = parts
    speed = SpeedPerturb((factor,))
    plain = SpeechDataset(cuts, tokenizer, AV, store)[0]
    both = SpeechDataset(cuts, tokenizer, AV, store, audio_transforms=[speed])[0]
    lips = SpeechDataset(cuts, tokenizer, ("video",), store, video_transforms=[speed])[0]
    assert len(both.audio) == pytest.approx(len(plain.audio) / factor, abs=1)
    assert len(both.video) == round(len(plain.video) / factor)
    np.testing.assert_array_equal(both.video, lips.video)
    with pytest.raises(ConfigError, match="out of step"):
        SpeechDataset(cuts, tokenizer, AV, store, video_transforms=[speed])


def test_lips_alone_are_perturbed_by_the_same_setting(parts):
    """A configuration of sound and lips serves for lips: its speeds are not lost."""
    cuts, tokenizer, store = parts
    speed = SpeedPerturb((0.8,))
    both = SpeechDataset(cuts, tokenizer, AV, store, audio_transforms=[speed])[0]
    lips = SpeechDataset(cuts, tokenizer, ["video"], store, audio_transforms=[speed, Draw()])[0]
    np.testing.assert_array_equal(both.video, lips.video)
    assert lips.audio is None


@pytest.mark.parametrize("modalities", [AV, ("video",), ("audio",)])
def test_lengths_are_known_before_loading(tiny_corpus, modalities):
    """Speeds are drawn before batches are made: no batch is longer than it was meant to be."""
    speeds = SpeedPerturb((0.5, 1.0, 2.0))
    data = make_data(tiny_corpus, modalities, batch_seconds=2.5, audio_transforms=[speeds])
    plain = make_data(tiny_corpus, modalities, batch_seconds=2.5).train
    seen = set()
    for epoch in range(3):
        data.train.epoch = epoch
        speeds = data.train.speeds
        seen.add(tuple(speeds))
        for i, speed in enumerate(speeds):
            assert len(data.train[i]) == pytest.approx(len(plain[i]) / speed, abs=1)
        sampler = data.sampler(data.train, shuffle=True)
        np.testing.assert_allclose(sampler.lengths, data.train.durations / speeds)
        # The same however the cuts are kept.
        listed = SpeechDataset(
            list(data.train.cuts), data.train.tokenizer, modalities, data.train.crops,
            audio_transforms=data.train.audio_transforms,
        )  # fmt: skip
        listed.epoch = epoch
        np.testing.assert_array_equal(listed.speeds, speeds)
        np.testing.assert_array_equal(listed.durations, data.train.durations)
    assert len(seen) == 3
    assert (plain.speeds == 1.0).all() and (data.valid.speeds == 1.0).all()
