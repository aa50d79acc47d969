"""Padding of items into a batch."""

import numpy as np
import torch

from speechattn.data.batches.batch import Item, collate, pad


def item(name: str, samples: int | None, frames: int | None, tokens: list[int]) -> Item:
    rng = np.random.default_rng(len(name))
    audio = None if samples is None else rng.standard_normal(samples).astype(np.float32)
    video = None if frames is None else rng.integers(1, 256, (frames, 4, 4), dtype=np.uint8)
    return Item(name, f"text {name}", tokens, audio, video)


def test_collate_pads_with_zeros():
    items = [item("a", 10, 3, [4, 5, 6]), item("bb", 4, 5, []), item("ccc", 7, 1, [2])]
    batch = collate(items)
    assert len(batch) == 3
    assert batch.ids == ["a", "bb", "ccc"]
    assert batch.texts == ["text a", "text bb", "text ccc"]
    assert batch.tokens.tolist() == [[4, 5, 6], [0, 0, 0], [2, 0, 0]]
    assert batch.token_lengths.tolist() == [3, 0, 1]
    assert batch.audio.shape == (3, 10)
    assert batch.audio.dtype == torch.float32
    assert batch.video.shape == (3, 5, 1, 4, 4)
    assert batch.video.dtype == torch.uint8
    for lengths in (batch.token_lengths, batch.audio_lengths, batch.video_lengths):
        assert lengths.dtype == torch.int64
    for i, one in enumerate(items):
        n, t = int(batch.audio_lengths[i]), int(batch.video_lengths[i])
        assert (n, t) == (len(one.audio), len(one.video))
        np.testing.assert_array_equal(batch.audio[i, :n], one.audio)
        np.testing.assert_array_equal(batch.video[i, :t, 0], one.video)
        assert not batch.audio[i, n:].any()
        assert not batch.video[i, t:].any()


def test_collate_of_one_modality():
    audio = collate([item("a", 3, None, [1]), item("b", 2, None, [1])])
    assert audio.video is None and audio.video_lengths is None
    video = collate([item("a", None, 3, [1])])
    assert video.audio is None and video.audio_lengths is None


def test_collate_of_unknown_texts():
    batch = collate([item("a", 3, None, []), item("b", 2, None, [])])
    assert batch.tokens.shape == (2, 0)
    assert batch.token_lengths.tolist() == [0, 0]


def test_to_moves_every_tensor():
    batch = collate([item("a", 3, 2, [1]), item("b", 2, 1, [1])])
    moved = batch.to("meta")
    assert moved.ids == batch.ids
    for name in ("tokens", "token_lengths", "audio", "audio_lengths", "video", "video_lengths"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(batch, name).device.type == "cpu"


def test_pad_keeps_the_type():
    padded, lengths = pad([np.zeros((2, 3), np.int16), np.ones((4, 3), np.int16)])
    assert padded.dtype == torch.int16
    assert padded.shape == (2, 4, 3)
    assert lengths.tolist() == [2, 4]
