import pytest
import torch

from speechattn.masks import Chunks, chunk_mask, padding_mask, without_padding


@pytest.mark.parametrize("lengths", [[3], [4, 0, 2], [5, 5], [0]])
@pytest.mark.parametrize("extra", [0, 2])
def test_true_on_real_frames(lengths, extra):
    width = max(lengths) + extra
    expected = [[t < n for t in range(width)] for n in lengths]
    mask = padding_mask(torch.tensor(lengths), width)
    assert mask.dtype == torch.bool
    assert mask.shape == (len(lengths), width)
    assert mask.tolist() == expected


def test_longest_item_by_default():
    assert padding_mask(torch.tensor([2, 4, 1])).shape == (3, 4)


CHUNKS = [Chunks(1), Chunks(1, 2), Chunks(3, 0), Chunks(3, 1), Chunks(4), Chunks(20, 3)]


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("frames", [1, 5, 12])
def test_chunk_mask(chunks, frames):
    def seen(i, j):
        begin = i // chunks.size * chunks.size
        left = frames if chunks.left == -1 else chunks.left
        return begin - left <= j < begin + chunks.size

    mask = chunk_mask(frames, chunks)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[seen(i, j) for j in range(frames)] for i in range(frames)]
    part = chunk_mask(frames, chunks, queries=(1, frames), keys=(0, frames // 2))
    assert torch.equal(part, mask[1:, : frames // 2])


def test_size_1_is_causal():
    assert torch.equal(chunk_mask(6, Chunks(1)), torch.ones(6, 6).tril().bool())


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("queries", [(0, 1), (0, 12), (2, 7), (5, 6), (11, 12)], ids=str)
def test_window_holds_what_is_seen(chunks, queries):
    first, last = chunks.window(*queries, frames=12)
    columns = chunk_mask(12, chunks)[slice(*queries)].any(0).nonzero().flatten().tolist()
    assert (first, last) == (columns[0], columns[-1] + 1)


@pytest.mark.parametrize("size, left", [(0, 0), (-1, 0), (2, -2)])
def test_chunks_refuse(size, left):
    with pytest.raises(ValueError, match="Chunks"):
        Chunks(size, left)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2), (3, 5, 2, 4)], ids=str)
def test_without_padding(shape):
    x = torch.full(shape, torch.nan)
    lengths = torch.tensor([5, 0, 3])
    for item, n in zip(x, lengths, strict=True):
        item[:n] = 1.0
    clean = without_padding(x, lengths)
    assert torch.equal(
        clean.flatten(2).sum(1)[:, 0] if x.dim() > 2 else clean.sum(1), lengths.float()
    )
    assert x[2, 4].isnan().all()  # what was given is as it was
    whole = torch.ones(shape)
    assert without_padding(whole, torch.full((3,), 5)) is whole
