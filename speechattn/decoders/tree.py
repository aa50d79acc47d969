"""What a search remembers of tokens: a tree in which hypotheses share what they have in common.

The hypotheses of a beam come from a few ancestors and differ in their last tokens only. Keys and
values of a token are therefore kept once, at its node, however many hypotheses go through it;
nothing is copied where hypotheses are reordered, and a node that none goes through is dropped.
Attention runs over all nodes of an utterance at once, each hypothesis seeing those on its path.

Legend: B utterances, K hypotheses of an utterance, N = B * K, M nodes of an utterance, H heads,
Dh their width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

KeyValue = tuple[Tensor, Tensor]

# Dropping nodes copies the others: it is done once so many of them are dead.
DEAD = 0.25


@dataclass(frozen=True)
class TokenTree:
    """Never changed in place: what is made of it is new.

    Attributes:
        cache: per layer, keys and values of the nodes, each (B, M, H, Dh).
        path: (B, K, M) bool, the nodes of each hypothesis.
        depth: U, tokens of each hypothesis.
    """

    cache: tuple[KeyValue, ...]
    path: Tensor
    depth: int = 0

    @classmethod
    def root(cls, layers: int, batch: int, heads: int, like: Tensor, size: int) -> "TokenTree":
        """No tokens yet: one hypothesis an utterance.

        Args:
            layers: how many.
            batch: B.
            heads: H.
            like: tells device and dtype.
            size: Dh.
        """
        none = like.new_empty(batch, 0, heads, size)
        path = torch.zeros(batch, 1, 0, dtype=torch.bool, device=like.device)
        return cls(tuple((none, none) for _ in range(layers)), path)

    @property
    def hypotheses(self) -> int:
        """N."""
        return self.path.size(0) * self.path.size(1)

    def grown_path(self) -> Tensor:
        """The paths with one more node for each hypothesis, its own: (B, K, M + K)."""
        b, k, _ = self.path.shape
        own = torch.eye(k, dtype=torch.bool, device=self.path.device).expand(b, k, k)
        return torch.cat([self.path, own], 2)

    def grown(self, cache: tuple[KeyValue, ...], path: Tensor) -> "TokenTree":
        """With the caches of one more token, and `grown_path`."""
        return TokenTree(cache, path, self.depth + 1)

    @property
    def utterances(self) -> int:
        """B."""
        return self.path.size(0)

    def select(self, index: Tensor) -> tuple["TokenTree", Tensor | None]:
        """Reorders, drops or multiplies hypotheses.

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
        return self._chosen(index, rows, count), rows

    def _chosen(self, index: Tensor, rows: Tensor | None, count: int) -> "TokenTree":
        path = self.path.flatten(0, 1)[index].unflatten(0, (-1, count))  # (B', K', M)
        cache, nodes = self.cache, path.size(2)
        alive = path.any(1)  # (B', M)
        needed = int(alive.sum(1).max()) if alive.numel() else 0
        if nodes - needed > DEAD * nodes:
            # Those alive first; an utterance with fewer has dead ones among them, seen by none.
            order = alive.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :needed]
            path = path.gather(2, order[:, None].expand(-1, count, -1))
            row = torch.arange(len(order), device=order.device) if rows is None else rows
            flat = (order + row[:, None] * nodes).flatten()
            cache = tuple((_nodes(k, flat, needed), _nodes(v, flat, needed)) for k, v in cache)
        elif rows is not None:
            cache = tuple((k.index_select(0, rows), v.index_select(0, rows)) for k, v in cache)
        return TokenTree(cache, path, self.depth)


def _nodes(x: Tensor, flat: Tensor, count: int) -> Tensor:
    """The nodes `flat` of (B, M, H, Dh), counted over all utterances, as (B', count, H, Dh)."""
    return x.flatten(0, 1).index_select(0, flat).unflatten(0, (-1, count))
