"""Utterances joined to recordings: who with whom, and what comes out."""

from types import SimpleNamespace

import numpy as np
import pytest

from speechattn.data.augment import ClipTransform
from speechattn.data.batches import DataOptions
from speechattn.data.batches.datamodule import SpeechData
from speechattn.data.batches.dataset import SpeechDataset, read_cuts
from speechattn.data.batches.joined import JoinedDataset, join_groups, join_texts
from speechattn.data.crops.store import CropStore
from speechattn.data.tokenizers import CharTokenizer, SentencePieceTokenizer, Tokenizer
from speechattn.errors import ConfigError

AV = ("audio", "video")
DURATIONS = np.random.default_rng(0).uniform(0.5, 9.0, 400)


def by_hand(durations, seconds, chance, seed, epoch):
    """The rule of `join_groups`, an utterance at a time, from the same draws."""
    rng = np.random.default_rng((seed, epoch, 0x10))
    order = rng.permutation(len(durations)).tolist()
    draws = zip(rng.random(len(order)) < chance, rng.random(len(order)), strict=True)
    groups, limit, total = [], -1.0, 0.0
    for i, (joins, place) in zip(order, draws, strict=True):
        if groups and total + durations[i] <= limit + 1e-6:
            groups[-1].append(i)
            total += durations[i]
            continue
        groups.append([i])
        total = limit = durations[i]
        if joins and seconds > total:
            limit = total + (seconds - total) * place
    return groups


def groups_of(durations, seconds, chance=1.0, seed=0, epoch=0):
    order, bounds = join_groups(np.asarray(durations), seconds, chance, seed=seed, epoch=epoch)
    return [order[a:b].tolist() for a, b in zip(bounds, bounds[1:], strict=False)]


@pytest.mark.parametrize(
    "seconds, chance, seed, epoch", [(20.0, 1.0, 0, 0), (20.0, 0.6, 1, 7), (4.0, 1.0, 0, 3)]
)
def test_groups(seconds, chance, seed, epoch):
    found = groups_of(DURATIONS, seconds, chance, seed, epoch)
    assert found == by_hand(DURATIONS, seconds, chance, seed, epoch)
    assert sorted(i for group in found for i in group) == list(range(len(DURATIONS)))
    for group in found:
        assert len(group) == 1 or DURATIONS[group].sum() <= seconds + 1e-6
    assert found == groups_of(DURATIONS, seconds, chance, seed, epoch)
    assert found != groups_of(DURATIONS, seconds, chance, seed, epoch + 1)
    assert found != groups_of(DURATIONS, seconds, chance, seed + 1, epoch)


def test_lengths_spread_up_to_the_longest():
    sizes = np.array([len(g) for g in groups_of(np.full(3000, 1.0), 4.999)])
    # Uniform between one and five: quarters of one to four, of the recordings.
    np.testing.assert_allclose(np.bincount(sizes)[1:] / len(sizes), [0.25] * 4, atol=0.04)
    half = np.array([len(g) for g in groups_of(np.full(3000, 1.0), 4.999, chance=0.5)])
    assert np.mean(half == 1) == pytest.approx(0.625, abs=0.04)
    assert all(len(g) == 1 for g in groups_of(DURATIONS, 20.0, chance=0.0))
    assert groups_of([3.0], 1.0) == [[0]]


def test_equal_lengths_fit_exactly():
    """Sums of many equal lengths are not exact."""
    groups = groups_of(np.full(1000, 0.1), 0.3)
    assert {len(g) for g in groups} == {1, 2} or max(map(len, groups)) <= 3


@pytest.fixture
def dataset(tiny_corpus):
    folder = tiny_corpus.folder
    store = CropStore(folder / "crops")
    cuts = read_cuts(folder / "cuts_train.jsonl.gz", AV, store)
    return SpeechDataset(cuts, Tokenizer.load(folder / "tokens"), AV, store, seed=3)


def test_items(dataset):
    joined = JoinedDataset(dataset, 5.0)
    assert len(joined) < len(dataset) and len(joined.durations) == len(joined)
    heard = []
    for i in range(len(joined)):
        item, parts = joined[i], [dataset[k] for k in joined.utterances(i)]
        heard += joined.utterances(i)
        assert item.id == "+".join(p.id for p in parts)
        assert item.text == "".join(p.text for p in parts)  # the tokenizer has no space
        assert dataset.tokenizer.decode(item.tokens) == item.text
        # Lips and sound of every part stay in step.
        np.testing.assert_array_equal(item.audio, np.concatenate([p.audio for p in parts]))
        np.testing.assert_array_equal(item.video, np.concatenate([p.video for p in parts]))
        assert len(item.audio) == 640 * len(item.video)
        assert joined.durations[i] == pytest.approx(len(item.video) / 25, abs=0.05 * len(parts))
    assert sorted(heard) == list(range(len(dataset)))


def test_texts():
    english = CharTokenizer.train(["a b"])
    assert join_texts(["ab", "", "b a", "b"], english) == "ab b a b"
    assert join_texts(["ab", "b"], CharTokenizer.train(["ab"])) == "abb"
    assert join_texts(["\u4f60 ab", "b\u597d", "\u4f60"], english) == "\u4f60 ab b\u597d\u4f60"
    pieces = SentencePieceTokenizer.train(["a bc abc", "ab c ca ba"], 10, "bpe")
    both = join_texts(["a bc", "ab c"], pieces)
    assert pieces.encode(both) == pieces.encode("a bc") + pieces.encode("ab c")
    assert join_texts([""], english) == join_texts(["", ""], english) == ""


def test_sound_alone(dataset, tiny_corpus):
    heard = SpeechDataset(dataset.cuts, dataset.tokenizer, ["audio"])
    joined = JoinedDataset(heard, 5.0)
    i = int(np.argmax(joined.durations))
    item = joined[i]
    assert item.video is None
    assert len(item.audio) == sum(dataset.cuts[k].num_samples for k in joined.utterances(i))


class Mark(ClipTransform):
    """Adds one number to the whole clip."""

    def __call__(self, clip, generator):
        import torch

        return clip + float(torch.rand((), generator=generator))


def test_a_recording_is_transformed_as_one(dataset):
    """One draw for all of it, whoever loads it, another in another epoch."""
    plain = SpeechDataset(dataset.cuts, dataset.tokenizer, ["audio"])
    marked = SpeechDataset(
        dataset.cuts, dataset.tokenizer, ["audio"], audio_transforms=[Mark()], seed=3
    )
    joined = JoinedDataset(marked, 5.0)

    def shifts(epoch):
        joined.epoch = epoch
        found = {}
        for i in range(len(joined)):
            before = np.concatenate([plain[k].audio for k in joined.utterances(i)])
            shift = joined[i].audio - before
            assert np.ptp(shift) < 1e-5
            found[joined[i].id] = round(float(shift[0]), 5)
        return found

    first, second = shifts(0), shifts(1)
    assert len(set(first.values())) == len(first)
    assert not set(first.values()) & set(second.values())
    assert shifts(0) == first


def data(tiny_corpus, **options) -> SpeechData:
    folder = tiny_corpus.folder
    return SpeechData(
        DataOptions(num_workers=0, **options),
        folder / "cuts_train.jsonl.gz",
        folder / "cuts_dev.jsonl.gz",
        Tokenizer.load(folder / "tokens"),
        modalities=["audio"],
        seed=5,
    )


def trainer(epoch, rank=0, world_size=1):
    return SimpleNamespace(current_epoch=epoch, global_rank=rank, world_size=world_size)


def ids(data, epoch, rank=0, world_size=1):
    data.trainer = trainer(epoch, rank, world_size)
    return [batch.ids for batch in data.train_dataloader()]


def test_batches(tiny_corpus):
    """The same in a run that starts at an epoch; capped by the length of what was joined."""
    joined = data(tiny_corpus, join_seconds=5.0, join_chance=1.0, batch_seconds=8.0)
    epochs = [ids(joined, epoch) for epoch in range(3)]
    for found in epochs:
        parts = sorted(part for batch in found for name in batch for part in name.split("+"))
        assert parts == sorted(cut.id for cut in joined.train.dataset.cuts)
    assert epochs[0] != epochs[1] != epochs[2]
    assert any("+" in name for batch in epochs[0] for name in batch)
    fresh = data(tiny_corpus, join_seconds=5.0, join_chance=1.0, batch_seconds=8.0)
    assert ids(fresh, 2) == epochs[2]
    for batch in joined.train_dataloader():
        longest = int(batch.audio_lengths.max()) / 16000
        assert len(batch) == 1 or longest * len(batch) <= 8.0 + 0.1
    # What the model is measured on stays as it is.
    assert all("+" not in name for batch in joined.val_dataloader() for name in batch.ids)


def test_ranks_share_the_recordings(tiny_corpus):
    options = {"join_seconds": 5.0, "join_chance": 1.0, "batch_seconds": 5.0}
    whole = ids(data(tiny_corpus, **options), 1)
    ranks = [ids(data(tiny_corpus, **options), 1, rank, 2) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == -(-len(whole) // 2)
    # In the last step a batch may be divided, so that all ranks have one.
    together = [name for rank in ranks for batch in rank for name in batch]
    assert sorted(together) == sorted(name for batch in whole for name in batch)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"join_seconds": -1.0}, "join_seconds"),
        ({"join_seconds": 9.0, "join_chance": 1.5}, "join_chance"),
    ],
)
def test_options_that_do_not_fit(tiny_corpus, options, key):
    with pytest.raises(ConfigError, match=key):
        data(tiny_corpus, **options)


def test_a_recording_has_the_speed_of_its_first_utterance():
    class Some:
        durations, speeds = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.9, 1.0, 1.1, 1.2])
        seed, epoch = 0, 0

    joined = JoinedDataset(Some(), seconds=6.0)
    speeds = joined.speeds
    assert len(speeds) == len(joined) < 4
    for index, speed in enumerate(speeds):
        assert speed == Some.speeds[joined.utterances(index)[0]]
