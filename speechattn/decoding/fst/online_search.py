"""Streaming search over a graph: frames come in pieces, and events go out once they are certain.

Token passing (Young, Russell and Thornton, 1989) with the beam of Kaldi's `FasterDecoder`. Kaldi's
finds the same paths, but returns only the best and keeps the whole history; here events that all
active paths share are returned and dropped, so memory holds only what is undecided. Paths that meet
in a state of the graph have the same future and only the better one goes on, so all active paths
share their history up to a few words ago.

P here: active states, each with the best path to it and the last node (event) of that path.
"""

import heapq

import numpy as np

from speechattn.decoding.fst.graph import Graph

ROOT = -1  # node that stands for everything returned so far


class OnlineSearch:
    """The search of one stream.

    Args:
        graph: the decoding graph.
        beam: partial paths that are this much worse than the best of their frame are pruned.
        max_active: states kept per frame at most.
    """

    def __init__(self, graph: Graph, beam: float, max_active: int):
        self._beam = beam
        self._max_active = max_active
        arcs = self._arcs = graph.arcs
        self._first = arcs.first()
        self._best = np.full(arcs.states, -np.inf)  # (S,) scratch of `_step`
        self._winner = np.zeros(arcs.states, np.int64)
        self._states = np.zeros(1, np.int64)  # (P,)
        self._totals = np.zeros(1)  # (P,)
        self._nodes = np.full(1, ROOT)  # (P,)
        self._frames = 0
        # Of each node: its predecessor, which has a lower number, its event, the event's frame.
        self._before: list[int] = []
        self._events: list[int] = []
        self._starts: list[int] = []

    def accept(self, scores: np.ndarray) -> list[tuple[int, int]]:
        """Take the next frames (T, V) of log-probabilities.

        Returns:
            (event, frame) of events that have become certain.
        """
        for frame in np.asarray(scores, np.float64):
            self._step(frame)
        return self._settle()

    def best(self) -> list[tuple[int, int]]:
        """Return (event, frame) of the best path, as far as not returned yet."""
        return self._path(int(self._totals.argmax()))

    def finish(self) -> list[tuple[int, int]]:
        """Return the same of the best path in a final state, if there is one."""
        ended = self._totals + self._arcs.final[self._states]
        return self._path(int(ended.argmax())) if np.isfinite(ended).any() else self.best()

    def size(self) -> int:
        """Return how many numbers are held in memory."""
        return 3 * (len(self._before) + len(self._states))

    def _step(self, frame: np.ndarray) -> None:
        first = self._first[self._states]
        count = self._first[self._states + 1] - first
        origin = np.repeat(np.arange(len(count)), count)  # (A',) index of the active state
        ends = count.cumsum()
        arc = np.arange(len(origin)) + np.repeat(first - ends + count, count)
        totals = self._totals[origin] + self._arcs.score[arc] + frame[self._arcs.label[arc]]
        if not np.isfinite(totals).any():
            raise ValueError("every unit that the graph allows here has score -inf")
        kept = totals >= totals.max() - self._beam
        origin, arc, totals = origin[kept], arc[kept], totals[kept]
        target = self._arcs.target[arc]
        np.maximum.at(self._best, target, totals)
        wins = totals == self._best[target]
        self._winner[target[wins]] = wins.nonzero()[0]  # the last of equals
        self._best[target] = -np.inf
        wins = self._winner[np.unique(target)]
        if len(wins) > self._max_active:
            wins = wins[np.argpartition(-totals[wins], self._max_active)[: self._max_active]]
        self._states, self._totals = target[wins], totals[wins]
        nodes, events = self._nodes[origin[wins]], self._arcs.output[arc[wins]]
        new = events.nonzero()[0]
        self._before += nodes[new].tolist()
        self._events += events[new].tolist()
        self._starts += [self._frames] * len(new)
        nodes[new] = np.arange(len(self._events) - len(new), len(self._events))
        self._nodes = nodes
        self._frames += 1

    def _settle(self) -> list[tuple[int, int]]:
        """Return the events that all paths share, and drop those that none has."""
        last = np.unique(self._nodes)
        certain = self._chain(self._common_node(last.tolist()))
        done = set(certain)
        live, stack = set(), [n for n in last.tolist() if n != ROOT]
        while stack:
            node = stack.pop()
            if node not in live and node not in done:
                live.add(node)
                if self._before[node] != ROOT:
                    stack.append(self._before[node])
        returned = [(self._events[n], self._starts[n]) for n in certain]
        order = sorted(live)
        number = dict.fromkeys([ROOT, *done], ROOT) | {node: i for i, node in enumerate(order)}
        self._nodes = np.array([number[n] for n in self._nodes.tolist()])
        self._before = [number[self._before[n]] for n in order]
        self._events = [self._events[n] for n in order]
        self._starts = [self._starts[n] for n in order]
        # Keeps the precision of sums over an endless stream.
        self._totals -= self._totals.max()
        return returned

    def _common_node(self, nodes: list[int]) -> int:
        """Return the last node that the paths to all these nodes share."""
        heap = [-n for n in nodes]
        heapq.heapify(heap)
        while True:
            node = -heapq.heappop(heap)
            while heap and -heap[0] == node:
                heapq.heappop(heap)
            if not heap or node == ROOT:
                return node
            heapq.heappush(heap, -self._before[node])

    def _chain(self, node: int) -> list[int]:
        """Return the nodes from the first up to this one."""
        found = []
        while node != ROOT:
            found.append(node)
            node = self._before[node]
        return found[::-1]

    def _path(self, active: int) -> list[tuple[int, int]]:
        chain = self._chain(int(self._nodes[active]))
        return [(self._events[n], self._starts[n]) for n in chain]
