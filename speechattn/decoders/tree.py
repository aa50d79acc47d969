"""The decoder's cache in a beam search: a tree, in which hypotheses share their common tokens.

The hypotheses of a beam come from a few ancestors and differ in their last tokens only. Keys and
values of a token are therefore kept once, at its node, however many hypotheses go through it;
nothing is copied where hypotheses are reordered, and a node that none goes through is dropped.
Attention runs over all nodes of an utterance at once, each hypothesis to those on its path.
Where a mechanism merges tokens, a node stands for several of them, and the token that joins makes
a new node, which leaves the old one to the hypotheses that went another way.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from speechattn.attention.decoder_base import Cache, Growth

# Dropping nodes copies the others: it is done once so many of them are dead.
DEAD = 0.25


@dataclass(frozen=True)
class TokenTree:
    """The nodes of all utterances; never changed in place.

    Attributes:
        cache: per layer, the nodes' keys and values, or what stands for them, each (B, M, ...).
        path: (B, K, M) bool, the nodes of each hypothesis: ceil(U / stride) of them, in the order
            in which they came.
        depth: U, tokens of each hypothesis.
        stride: tokens in a row that share a node, the same in all layers.
    """

    cache: tuple[Cache, ...]
    path: Tensor
    depth: int = 0
    stride: int = 1

    @classmethod
    def root(cls, cache: tuple[Cache, ...], stride: int = 1) -> "TokenTree":
        """Make a tree without tokens: one hypothesis an utterance.

        Args:
            cache: per layer, of no nodes, each (B, 0, ...).
            stride: tokens in a row that share a node.
        """
        first = cache[0][0]
        path = torch.zeros(len(first), 1, 0, dtype=torch.bool, device=first.device)
        return cls(cache, path, stride=stride)

    @property
    def hypotheses(self) -> int:
        """Return N."""
        return self.path.size(0) * self.path.size(1)

    def growth(self) -> Growth:
        """Return the nodes with one more token of each hypothesis, behind those that there are."""
        b, k, m = self.path.shape
        own = torch.eye(k, dtype=torch.bool, device=self.path.device).expand(b, k, k)
        if self.depth % self.stride == 0:
            return Growth(torch.cat([self.path, own], 2), self.depth)
        # The newest node of each is not full yet: it goes on as the new one.
        parent = (self.path * torch.arange(m, device=self.path.device)).argmax(2)  # (B, K)
        path = self.path.scatter(2, parent[..., None], False)
        return Growth(torch.cat([path, own], 2), self.depth, parent)

    def grown(self, cache: tuple[Cache, ...], growth: Growth) -> "TokenTree":
        """Return the tree with the caches of one more token, which went where `growth` says."""
        return replace(self, cache=cache, path=growth.path, depth=self.depth + 1)

    @property
    def utterances(self) -> int:
        """Return B."""
        return self.path.size(0)

    def select(self, index: Tensor) -> tuple["TokenTree", Tensor | None]:
        """Reorder, drop or multiply hypotheses.

        Utterances of which nothing is selected leave the tree. Where runs of hypotheses of one
        utterance are not equally long, each hypothesis becomes an utterance of its own.

        Args:
            index: (N',) int64, each in [0, N), those of an utterance adjacent.

        Returns:
            The tree of these hypotheses, and the utterance that each of its rows was, (B',) int64;
            None where they are the same as before.
        """
        owner = index // self.path.size(1)  # (N',)
        rows, runs = torch.unique_consecutive(owner, return_counts=True)
        count = int(runs[0]) if runs.numel() else 1
        if not bool((runs == count).all()):
            rows, count = owner, 1
        if torch.equal(rows, torch.arange(self.utterances, device=rows.device)):
            rows = None
        return self._select_paths(index, rows, count), rows

    def _select_paths(self, index: Tensor, rows: Tensor | None, count: int) -> "TokenTree":
        path = self.path.flatten(0, 1)[index].unflatten(0, (-1, count))  # (B', K', M)
        cache, nodes = self.cache, path.size(2)
        alive = path.any(1)  # (B', M)
        needed = int(alive.sum(1).max()) if alive.numel() else 0
        if nodes - needed > DEAD * nodes:
            # Those alive first; an utterance with fewer has dead ones among them, on no path.
            order = alive.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :needed]
            path = path.gather(2, order[:, None].expand(-1, count, -1))
            row = torch.arange(len(order), device=order.device) if rows is None else rows
            flat = (order + row[:, None] * nodes).flatten()
            cache = tuple(tuple(_nodes(x, flat, needed) for x in layer) for layer in cache)
        elif rows is not None:
            cache = tuple(tuple(x.index_select(0, rows) for x in layer) for layer in cache)
        return replace(self, cache=cache, path=path)


def _nodes(x: Tensor, flat: Tensor, count: int) -> Tensor:
    """Return the nodes `flat` of (B, M, ...), counted over all utterances, as (B', count, ...)."""
    return x.flatten(0, 1).index_select(0, flat).unflatten(0, (-1, count))
