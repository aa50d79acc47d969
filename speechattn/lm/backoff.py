"""Graphs of contexts that back off to shorter ones for arcs that they lack."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class BackoffArcs:
    """A graph of contexts with back-off.

    State 0 is the empty context; it has an arc for every unit. Every other state backs off to a
    shorter one, and so on to 0.
    """

    root: Tensor  # (V,) int64, the state that each unit leads to from state 0
    backoff: Tensor  # (S,) int64; of state 0 it is 0
    key: Tensor  # (E + 1,) int64, source * V + unit of the arcs, sorted; the last is above all
    target: Tensor  # (E + 1,) int64, where the arcs lead to
    first: Tensor  # (S + 1,) int64, the first arc of each state; state 0 has none here
    hops: int  # the most back-offs from any state to state 0

    @classmethod
    def of(cls, root: Tensor, backoff: Tensor, key: Tensor, target: Tensor) -> "BackoffArcs":
        """Make a graph of arcs sorted by key, without the last one of the attributes."""
        starts = torch.arange(len(backoff) + 1) * len(root)
        end = torch.tensor([torch.iinfo(torch.int64).max])
        hops, state = 0, backoff
        while bool(state.any()):
            hops, state = hops + 1, backoff[state]
        keys, targets = torch.cat([key, end]), torch.cat([target, end * 0])
        first = torch.searchsorted(key, starts)
        return cls(root, backoff, keys, targets, first, hops + (len(backoff) > 1))

    def chain(self, state: Tensor) -> list[Tensor]:
        """Return the states (N,), what they back off to, and so on, up to state 0, exclusive."""
        states = []
        for _ in range(self.hops):
            states.append(state)
            state = self.backoff[state]
        return states

    def step(self, state: Tensor, unit: Tensor) -> Tensor:
        """Return where units (N,) lead to from states (N,)."""
        target = self.root[unit]
        for context in reversed(self.chain(state)):
            at, hit = find(self.key, context * len(self.root) + unit)
            target = torch.where(hit, self.target[at], target)
        return target

    def write(self, row: Tensor, state: Tensor, values: Tensor, offset: Tensor) -> None:
        """Write the own arcs of states (N,) into their rows (N, V), which are contiguous.

        What is written are the `values` (E + 1,) of the arcs, plus the `offset` (N,) of the row.
        """
        begin = self.first[state]
        count = self.first[state + 1] - begin
        n, v = row.shape
        hypothesis = torch.arange(n, device=row.device)
        # Ragged: one entry for each arc of all states.
        owner = torch.repeat_interleave(hypothesis, count)
        skip = begin - (count.cumsum(0) - count)
        arc = torch.arange(len(owner), device=row.device).add_(skip[owner])
        place = self.key[arc].add_(((hypothesis - state) * v)[owner])
        row.view(-1).scatter_(0, place, values[arc].add_(offset[owner]))

    def to(self, device: torch.device | str) -> "BackoffArcs":
        """Move to another device."""
        return move(self, device)


def find(key: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Look up values in the sorted `key`, which ends in a larger one: places, and whether found."""
    at = torch.searchsorted(key, wanted)
    return at, key[at] == wanted


def move(tensors: T, device: torch.device | str) -> T:
    """Move the tensors of a dataclass to a device."""
    values = {f.name: getattr(tensors, f.name) for f in fields(tensors)}
    moved = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
    return replace(tensors, **moved)
