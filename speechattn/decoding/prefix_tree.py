"""Whole hypotheses scored as a tree: what several begin with is computed once.

The n-best hypotheses of an utterance differ in a few tokens. A pass over the tree of their
prefixes gives each of them the score that it gets alone, at the cost of the distinct prefixes.

Legend: B utterances, M nodes of an utterance (distinct prefixes), T frames, V units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Logits held at once. A batch with more of them goes through in several passes.
MAX_LOGITS = 2**27


@dataclass(frozen=True)
class PrefixTree:
    """The prefixes of B utterances' sequences.

    Attributes:
        tokens: the last token of each, (B, M) int64; <sos> at the root and where there is no node.
        depth: how many tokens stand before it, (B, M) int64.
        path: (B, M, M) bool, the nodes that each one sees: those from the root to itself.
        row, node, token: of each prediction that counts, the utterance, the node that makes it and
            the token that is predicted, (E,) int64.
        sequence: whose prediction that is, counted over all utterances, (E,) int64.
    """

    tokens: Tensor
    depth: Tensor
    path: Tensor
    row: Tensor
    node: Tensor
    token: Tensor
    sequence: Tensor

    @classmethod
    def of(cls, sequences: Sequence[Sequence[Sequence[int]]], eos: int) -> "PrefixTree":
        """Build the trees of each utterance's sequences, fed in this order, without <sos>.

        Args:
            sequences: of each utterance any number.
            eos: <sos/eos>, which every sequence begins behind and ends with.
        """
        nodes: list[list[tuple[int, int]]] = []  # of each utterance: parent and token
        counted: list[tuple[int, int, int, int]] = []
        number = 0
        for b, utterance in enumerate(sequences):
            seen: dict[tuple[int, int], int] = {(-1, eos): 0}
            for sequence in utterance:
                at = 0
                for token in sequence:
                    counted.append((b, at, token, number))
                    at = seen.setdefault((at, token), len(seen))
                counted.append((b, at, eos, number))
                number += 1
            nodes.append(list(seen))
        m = max(map(len, nodes))
        tokens = torch.full((len(nodes), m), eos)
        depth = torch.zeros(len(nodes), m, dtype=torch.int64)
        path = torch.eye(m, dtype=torch.bool).repeat(len(nodes), 1, 1)
        for b, utterance in enumerate(nodes):
            tokens[b, : len(utterance)] = torch.tensor([token for _, token in utterance])
            depths = [0]
            for i, (parent, _) in enumerate(utterance[1:], 1):
                depths.append(depths[parent] + 1)
                path[b, i] |= path[b, parent]
            depth[b, : len(depths)] = torch.tensor(depths)
        edges = torch.tensor(counted, dtype=torch.int64).view(-1, 4)
        return cls(tokens, depth, path, *edges.unbind(1))

    def to(self, device: torch.device) -> "PrefixTree":
        """Return the same on a device."""
        return PrefixTree(**{name: value.to(device) for name, value in vars(self).items()})


def tree_scores(
    predict: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
    sequences: Sequence[Sequence[Sequence[int]]],
    memory: Tensor,
    lengths: Tensor,
    vocab_size: int,
) -> list[list[float]]:
    """Return the log-probability of each sequence, <eos> included.

    Args:
        predict: `Decoder.predict_tree`, or that of the other direction.
        sequences: of each utterance, in the order in which they are fed.
        memory: (B, T, D).
        lengths: (B,) int64, each at least 1.
        vocab_size: V.
    """
    scores: list[list[float]] = []
    begin, most = 0, max(1, MAX_LOGITS // vocab_size)
    while begin < len(sequences):
        end, nodes = begin, 0
        while end < len(sequences):
            nodes = max(nodes, 1 + sum(map(len, sequences[end])))  # at most so many
            if end > begin and nodes * (end + 1 - begin) > most:
                break
            end += 1
        part = sequences[begin:end]
        tree = PrefixTree.of(part, vocab_size - 1).to(memory.device)
        logits = predict(
            tree.tokens, tree.depth, tree.path, memory[begin:end], lengths[begin:end]
        ).float()  # (B, M, V)
        total = logits.logsumexp(-1)
        true = logits[tree.row, tree.node, tree.token] - total[tree.row, tree.node]
        sums = torch.zeros(sum(map(len, part)), dtype=torch.float64, device=memory.device)
        flat = iter(sums.index_add(0, tree.sequence, true.double()).tolist())
        scores += [[next(flat) for _ in utterance] for utterance in part]
        begin = end
    return scores
