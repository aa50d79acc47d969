"""The contract of a decoder's self-attention: causal, over tokens and over a tree of hypotheses.

A search caches tokens in the nodes of a tree that hypotheses share (`decoders.tree`). A mechanism
defines what a node holds, and how many tokens in a row share one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from speechattn.attention.base import Pattern

# The contents of the nodes of a tree, each (B, M, ...).
Cache = tuple[Tensor, ...]


@dataclass(frozen=True)
class Growth:
    """The nodes that a step adds: one for each hypothesis, after the M existing ones.

    Attributes:
        path: (B, K, M + K) bool, the nodes that each new one sees, itself included.
        depth: tokens before the new one.
        parent: (B, K) int64, the node that the new one extends and replaces, which is no longer on
            the path; None where nothing is replaced.
    """

    path: Tensor
    depth: int = 0
    parent: Tensor | None = None


class TokenAttention(nn.Module):
    """Attention of each token to itself and to the tokens before it.

    A subclass is constructed as `(width, heads, dropout=0.0, *, its own options with defaults)`.

    Attributes:
        patterns: those of CAB (2210.07661) that it serves.
        stride: tokens in a row that share a node: t tokens have ceil(t / stride) nodes.
    """

    patterns: ClassVar[tuple[Pattern, ...]] = ("causal self",)
    stride: int = 1

    def forward(self, x: Tensor) -> Tensor:
        """Attend in whole sequences, (N, U, D) -> (N, U, D); token u sees tokens 0..u."""
        raise NotImplementedError

    def tree(self, x: Tensor, path: Tensor, depth: Tensor) -> Tensor:
        """Attend in sequences that share prefixes.

        Args:
            x: (B, M, D), one token per node.
            path: (B, M, M) bool, the nodes from the root to each one, itself included.
            depth: (B, M) int64, the number of tokens before each.

        Returns:
            (B, M, D).
        """
        raise NotImplementedError

    def empty(self, batch: int, like: Tensor) -> Cache:
        """Return the caches of no nodes, each (B, 0, ...), with the device and dtype of `like`."""
        raise NotImplementedError

    def step(self, x: Tensor, past: Cache, growth: Growth) -> tuple[Tensor, Cache]:
        """Attend from one token of each hypothesis; no dropout.

        Args:
            x: (B, K, D).
            past: caches of M nodes.
            growth: the nodes of the new tokens.

        Returns:
            (B, K, D), and the caches of M + K nodes.
        """
        raise NotImplementedError


# Makes a mechanism from width, heads and dropout. YAML names the class, and its own options.
TokenAttentionFactory = Callable[[int, int, float], TokenAttention]
