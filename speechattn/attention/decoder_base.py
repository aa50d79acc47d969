"""What every self-attention of a decoder is: over tokens, causal, and over a tree of hypotheses.

Legend: B utterances, K hypotheses of an utterance, N = B * K, U tokens, M nodes, D width.

A search keeps what it remembers of tokens in nodes that hypotheses share (`decoders.tree`). A
mechanism says what a node holds, and how many tokens in a row share one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from speechattn.attention.base import Pattern

# What the nodes of a tree hold, each (B, M, ...).
Cache = tuple[Tensor, ...]


@dataclass(frozen=True)
class Growth:
    """Where the tokens of a step go: one node for each hypothesis, behind the M that there are.

    Attributes:
        path: (B, K, M + K) bool, the nodes that each new one sees, itself among them.
        depth: tokens before the new one.
        parent: (B, K) int64, the node that the new one takes in and stands for; None where each
            goes on beside the others. It is not on the path any more.
    """

    path: Tensor
    depth: int = 0
    parent: Tensor | None = None


class TokenAttention(nn.Module):
    """Each token of a sequence looks at itself and at those before it.

    A subclass is made by `(width, heads, dropout, ...its own options)`, the options with defaults.

    Attributes:
        patterns: those of CAB (2210.07661) that it serves.
        stride: tokens in a row that share a node. After t tokens a hypothesis has
            ceil(t / stride) of them.
    """

    patterns: ClassVar[tuple[Pattern, ...]] = ("causal self",)
    stride: int = 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, U, D) -> (N, U, D); token u sees tokens 0..u."""
        raise NotImplementedError

    def tree(self, x: Tensor, path: Tensor, depth: Tensor) -> Tensor:
        """`forward` of sequences that share what they begin with.

        Args:
            x: (B, M, D), a token a node.
            path: (B, M, M) bool, the nodes from the root to each one, itself included.
            depth: (B, M) int64, how many tokens stand before each.

        Returns:
            (B, M, D).
        """
        raise NotImplementedError

    def empty(self, batch: int, like: Tensor) -> Cache:
        """The caches of no nodes, each (B, 0, ...), with the device and dtype of `like`."""
        raise NotImplementedError

    def step(self, x: Tensor, past: Cache, growth: Growth) -> tuple[Tensor, Cache]:
        """One token of each hypothesis; no dropout.

        Args:
            x: (B, K, D).
            past: caches of M nodes.
            growth: where the tokens go.

        Returns:
            (B, K, D), and the caches of M + K nodes.
        """
        raise NotImplementedError


# Makes a mechanism from width, heads and dropout. YAML names the class, and its own options.
TokenAttentionFactory = Callable[[int, int, float], TokenAttention]
