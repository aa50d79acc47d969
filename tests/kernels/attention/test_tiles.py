"""Every real query is in one tile, with all the keys that it sees."""

import pytest
import torch

from speechattn.kernels.attention import tiles as module
from speechattn.kernels.attention.tiles import groups, tiles
from speechattn.masks import Chunks, chunk_mask

CPU = torch.device("cpu")


@pytest.mark.parametrize("lengths", [[5], [5, 0, 3], [0, 0, 4, 4], [0], [900, 2, 0]], ids=str)
@pytest.mark.parametrize("scores", [1, 200, 1 << 18])
def test_groups_cover_the_batch(lengths, scores, monkeypatch):
    monkeypatch.setattr(module, "GROUP_SCORES", scores)
    covered = []
    for group in groups(torch.tensor(lengths), max(lengths), heads=2):
        members = lengths[group.start : group.stop]
        assert group.frames == max(members) > 0
        if len(members) > 1:
            assert len(members) * 2 * max(lengths) ** 2 <= scores
        expected = [[t >= n for t in range(group.frames)] for n in members]
        if group.padding is None:
            assert not any(map(any, expected))
        else:
            assert group.padding.flatten(1).tolist() == expected
        covered += range(group.start, group.stop)
    assert len(covered) == len(set(covered))
    assert {b for b, n in enumerate(lengths) if n} <= set(covered)


@pytest.mark.parametrize("chunks", [None, Chunks(1), Chunks(4, 6), Chunks(50, 0), Chunks(33),
                                    Chunks(500, 20)], ids=str)  # fmt: skip
@pytest.mark.parametrize("frames", [1, 31, 300, 1201])
def test_tiles_cover_what_is_seen(frames, chunks):
    seen = torch.ones(frames, frames, dtype=torch.bool)
    if chunks is not None:
        seen = chunk_mask(frames, chunks)
    found = torch.zeros_like(seen)
    computed = 0
    for tile in tiles(frames, 4, chunks, CPU):
        part = found[tile.start : tile.stop, tile.first : tile.last]
        assert not part.any()
        part[:] = True if tile.hidden is None else ~tile.hidden
        computed += part.numel()
        assert part.numel() * 4 <= max(module.TILE_SCORES, 4 * 64 * frames)
    assert torch.equal(found, seen)
    assert computed <= seen.sum() + 2 * 128 * frames  # little is computed and hidden


def test_fewer_keys_than_queries():
    found = list(tiles(100, 1, None, CPU, keys=7))
    assert [t.start for t in found[1:]] == [t.stop for t in found[:-1]]
    assert found[0].start == 0 and found[-1].stop == 100
    assert all((t.first, t.last) == (0, 7) for t in found)
