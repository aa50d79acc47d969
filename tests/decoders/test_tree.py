"""TokenTree against sequences that are kept apart."""

import pytest
import torch

from speechattn.decoders.tree import TokenTree

B, H, SIZE = 3, 2, 4


def root(layers: int, batch: int) -> TokenTree:
    none = torch.zeros(batch, 0, H, SIZE)
    return TokenTree.root(tuple((none, none) for _ in range(layers)))


def grow(tree: TokenTree, values: torch.Tensor) -> TokenTree:
    """One more token of every hypothesis: (N, H, Dh) its key, and negative its value."""
    b, k, _ = tree.path.shape
    new = values.view(b, k, H, SIZE)
    cache = tuple(
        (torch.cat([key, layer + new], 1), torch.cat([value, -layer - new], 1))
        for layer, (key, value) in enumerate(tree.cache)
    )
    return tree.grown(cache, tree.growth())


def path_of(tree: TokenTree, n: int, layer: int) -> torch.Tensor:
    """The keys of hypothesis n in the order of its tokens, (U, H, Dh)."""
    b, k, _ = tree.path.shape
    seen = tree.path[n // k, n % k]
    key, value = (x[n // k][seen] for x in tree.cache[layer])
    assert torch.equal(value, -key)
    return key


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [1, 5])
def test_paths_are_histories(seed, width):
    """Random reorderings, as a search makes them; utterances leave on the way."""
    generator = torch.Generator().manual_seed(seed)

    def choose(high: int, count: int) -> torch.Tensor:
        # Few ancestors survive, as in a beam.
        return (torch.rand(count, generator=generator) ** 3 * high).long()

    tree = root(2, B)
    histories = [[] for _ in range(B)]  # the values of each hypothesis
    batch, counter, largest = B, 0, 0
    for step in range(30):
        k = len(histories) // batch
        values = torch.arange(counter, counter + len(histories)).float()
        counter += len(histories)
        tree = grow(tree, values[:, None, None].expand(-1, H, SIZE).contiguous())
        histories = [[*old, v.item()] for old, v in zip(histories, values, strict=True)]
        assert tree.depth == step + 1 and tree.hypotheses == len(histories)
        rows = torch.arange(batch)
        if step in (10, 20):
            rows = rows[torch.arange(batch) != step // 10]  # one utterance is done
        index = torch.cat([row * k + choose(k, width) for row in rows])
        tree, moved = tree.select(index)
        assert moved is None if len(rows) == batch else torch.equal(moved, rows)
        histories, batch = [histories[i] for i in index], len(rows)
        largest = max(largest, tree.path.size(2))
        for n, history in enumerate(histories):
            for layer in range(2):
                # Nodes stand in the order in which they came, which is that of the tokens.
                keys = path_of(tree, n, layer)[:, 0, 0]
                assert keys.tolist() == [layer + v for v in history]
    # Kept apart, the last would hold 30 for each hypothesis.
    assert largest < (45 if width == 1 else 30 * width * 0.75)


def test_nothing_is_copied_where_nothing_dies():
    tree = grow(root(1, 2), torch.zeros(2, H, SIZE))
    wide, _ = tree.select(torch.tensor([0, 0, 0, 1, 1, 1]))
    assert wide.cache[0][0] is tree.cache[0][0]
    assert wide.path.shape == (2, 3, 1) and wide.path.all()
    turned, _ = wide.select(torch.tensor([2, 1, 0, 3, 4, 5]))
    assert turned.cache[0][0] is tree.cache[0][0]
