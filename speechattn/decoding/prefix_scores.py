"""What scorers say of prefixes that grow at different times, as in a search over frames.

Legend: B utterances, K prefixes of an utterance, N = B * K, M prefixes chosen from N, S units, V
units, P scorers, C nodes.

A scorer gives the score of all next tokens after a prefix: it is asked once for each prefix, when
that enters the beam, and its answer kept as long as the prefix or one that may grow from it is
there. Such an answer is a node.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from speechattn.decoding.scorers import Scorer

# Nodes held, times N: one that is no longer needed is dropped when there is no room for more.
ROOM = 4


class PrefixScores:
    """Weighted scores of scorers, and a bonus of length, for the prefixes of a beam.

    The beam starts with the empty prefix in all places.

    Args:
        scorers: with their weights, each at least 0, by name.
        length_bonus: for each token.
        batch: B.
        beam_size: K.
        vocab_size: V; V - 1 is <sos/eos>.
        device: of the search.
    """

    def __init__(
        self,
        scorers: Mapping[str, tuple[Scorer, float]],
        length_bonus: float,
        batch: int,
        beam_size: int,
        vocab_size: int,
        device: torch.device,
    ):
        self.names = list(scorers)
        self.weights = [weight for _, weight in scorers.values()]
        self.bonus = length_bonus
        self.eos = vocab_size - 1
        room = ROOM * batch * beam_size
        sos = torch.full((batch,), self.eos, device=device)
        self.states: list[_States] = []
        self.rows: list[Tensor] = []  # (C, V) each
        for scorer, _ in scorers.values():
            scores, state = scorer.score(sos, scorer.start())
            rows = scores.new_zeros(room, vocab_size)
            rows[:batch] = scores
            self.rows.append(rows)
            held = _RowStates if _has_rows(scorer, state) else _OtherStates
            self.states.append(held(scorer, state, batch))
        self.used = batch  # nodes
        self.node = torch.arange(batch, device=device)[:, None].repeat(1, beam_size)  # (B, K)
        self.added = torch.zeros(batch, beam_size, dtype=torch.float64, device=device)
        self.parts = [torch.zeros_like(self.added) for _ in self.names]

    def rank(self, scores: Tensor, units: Tensor) -> Tensor:
        """Return the CTC scores of candidates, the weighted others added.

        Args:
            scores: (B, K, 1 + S); the first is of the prefix that stays.
            units: (B, 1 + S), what the others grow by.

        Returns:
            (B, K * (1 + S)).
        """
        after = self.added[..., None] + self.bonus  # (B, K, 1)
        if self.rows:
            at = self.node[..., None] * (self.eos + 1) + units[:, None, 1:]  # (B, K, S)
        for rows, weight in zip(self.rows, self.weights, strict=True):
            if weight:
                after = after + weight * rows.take(at)
        after = after.expand(-1, -1, units.size(1) - 1)
        added = torch.cat([self.added[..., None], after], 2)  # (B, K, 1 + S)
        self.candidates = added.flatten(1)
        return (scores + added).flatten(1)

    def follow(self, index: Tensor, origin: Tensor, token: Tensor, grows: Tensor) -> None:
        """Move on to the next beam.

        Args:
            index: (B, K), of each place's candidate among those ranked last.
            origin: (B, K), the old place.
            token: (B, K), what was appended, if anything.
            grows: (B, K) bool, whether anything was, to a prefix that is possible.
        """
        self.added = self.candidates.gather(1, index)
        node = self.node.gather(1, origin)
        at = node * (self.eos + 1) + token
        for i, rows in enumerate(self.rows):
            part = self.parts[i].gather(1, origin)
            self.parts[i] = torch.where(grows, part + rows.take(at), part)
        if not self.rows:
            return
        node = node.flatten()
        new = grows.flatten().nonzero()[:, 0]  # (M,)
        if self.used + len(new) > len(self.rows[0]):
            self._drop(node)
            node = torch.arange(len(node), device=node.device)
        if len(new):
            tokens, parents = token.flatten()[new], node[new]
            end = self.used + len(new)
            for rows, states in zip(self.rows, self.states, strict=True):
                rows[self.used : end] = states.grow(parents, tokens)
            node[new] = torch.arange(self.used, end, device=node.device)
            self.used = end
        self.node = node.view_as(token)

    def _drop(self, node: Tensor) -> None:
        """Keep the nodes (N,) alone, in this order."""
        for rows, states in zip(self.rows, self.states, strict=True):
            rows[: len(node)] = rows[node]
            states.keep(node)
        self.used = len(node)

    def finish(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return, with <eos>, the weighted sum (B, K), and each scorer's part (B, K) by name."""
        added = self.added
        parts = {}
        for i, name in enumerate(self.names):
            end = self.rows[i][self.node, self.eos]
            parts[name] = self.parts[i] + end
            if self.weights[i]:
                added = added + self.weights[i] * end
        return added, parts


class _States(Protocol):
    """A scorer's states after the nodes' prefixes."""

    def grow(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """Append a node for each of nodes (M,) with a token; their scores (M, V)."""

    def keep(self, nodes: Tensor) -> None:
        """Keep the nodes (M,) alone, in this order."""


class _RowStates:
    """Of a scorer whose state is a tensor with a row for each hypothesis."""

    def __init__(self, scorer: Scorer, state: Tensor, count: int):
        self.scorer = scorer
        self.state = state  # (C, ...)

    def grow(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        scores, state = self.scorer.score(tokens, self.scorer.select(self.state, nodes))
        self.state = torch.cat([self.state, state])
        return scores

    def keep(self, nodes: Tensor) -> None:
        self.state = self.scorer.select(self.state, nodes)


class _OtherStates:
    """Of any scorer: states that were made together stay together, each group in an object.

    The hypotheses of a state have the same number of tokens, so groups cannot be joined.
    """

    def __init__(self, scorer: Scorer, state: Any, count: int):
        self.scorer = scorer
        self.groups: dict[int, Any] = {0: state}
        self.made = 1
        self.place = torch.stack([torch.zeros(count).long(), torch.arange(count)])  # (2, C)

    def grow(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        group, row = self.place[:, nodes.cpu()]
        place = torch.empty(2, len(nodes), dtype=torch.int64)
        parts, order = [], []
        for g in group.unique().tolist():
            at = (group == g).nonzero()[:, 0]
            state = self.scorer.select(self.groups[g], row[at].to(nodes.device))
            scores, self.groups[self.made] = self.scorer.score(tokens[at.to(nodes.device)], state)
            place[0, at], place[1, at] = self.made, torch.arange(len(at))
            self.made += 1
            parts.append(scores)
            order.append(at)
        self.place = torch.cat([self.place, place], 1)
        scores = torch.cat(parts)
        return scores[torch.cat(order).argsort().to(scores.device)]

    def keep(self, nodes: Tensor) -> None:
        self.place = self.place[:, nodes.cpu()]
        self.groups = {g: self.groups[g] for g in self.place[0].unique().tolist()}


def _has_rows(scorer: Scorer, state: Any) -> bool:
    """Return whether a state is a tensor with a row for each hypothesis."""
    if not isinstance(state, Tensor) or not state.dim():
        return False
    # Any other axis has one length, whatever is selected.
    sizes = []
    for count in (2, 3):
        index = torch.zeros(count, dtype=torch.int64, device=state.device)
        sizes.append(scorer.select(state, index).size(0))
    return sizes == [2, 3]
