"""Search over a graph whose frames come in pieces, and that says which of its events are sure.

The token passing of Young, Russell and Thornton ("Token passing", 1989) with the beam of Kaldi's
`FasterDecoder`. That one finds the same paths but tells only the best one, and keeps a recording
from its beginning; here events that all paths agree on are handed out and forgotten, so memory is
that of what is undecided. Two paths that meet in a state of the graph have the same future, and the
better one goes on: this is how they come to agree, some words behind the present.

Legend: A active states, E arcs of them, N nodes, T frames, V units.
"""

import heapq

import numpy as np

from speechattn.decoding.fst.graph import Graph

ROOT = -1  # of the nodes: what was handed out


class OnlineSearch:
    """One recording.

    Args:
        graph: what may be said.
        beam: partial paths that are this much worse than the best of their frame are dropped.
        max_active: states that are kept in a frame at most.
    """

    def __init__(self, graph: Graph, beam: float, max_active: int):
        self._beam = beam
        self._max_active = max_active
        arcs = self._arcs = graph.arcs
        self._first = arcs.first()
        self._best = np.full(arcs.states, -np.inf)  # by state, in a frame
        self._winner = np.zeros(arcs.states, np.int64)
        self._states = np.zeros(1, np.int64)  # (A,)
        self._totals = np.zeros(1)  # (A,)
        self._nodes = np.full(1, ROOT)  # (A,), the last event of each
        self._frames = 0
        # By node: the one before it, always of a lower number, its event and the event's frame.
        self._before: list[int] = []
        self._events: list[int] = []
        self._starts: list[int] = []

    def accept(self, scores: np.ndarray) -> list[tuple[int, int]]:
        """The next frames (T, V) of log-probabilities.

        Returns:
            The events that are sure now, each once, with their frames.
        """
        for frame in np.asarray(scores, np.float64):
            self._step(frame)
        return self._settle()

    def best(self) -> list[tuple[int, int]]:
        """The best path's events that were not handed out, with their frames."""
        return self._path(int(self._totals.argmax()))

    def finish(self) -> list[tuple[int, int]]:
        """The same of the best path that ends where the graph lets one end, if there is one."""
        ended = self._totals + self._arcs.final[self._states]
        return self._path(int(ended.argmax())) if np.isfinite(ended).any() else self.best()

    def size(self) -> int:
        """Numbers that are remembered."""
        return 3 * (len(self._before) + len(self._states))

    def _step(self, frame: np.ndarray) -> None:
        first = self._first[self._states]
        count = self._first[self._states + 1] - first
        origin = np.repeat(np.arange(len(count)), count)  # (E,), the place of its state
        ends = count.cumsum()
        arc = np.arange(len(origin)) + np.repeat(first - ends + count, count)
        totals = self._totals[origin] + self._arcs.score[arc] + frame[self._arcs.label[arc]]
        if not np.isfinite(totals).any():
            raise ValueError("no path goes on: every unit that the graph allows has score -inf")
        kept = totals >= totals.max() - self._beam
        origin, arc, totals = origin[kept], arc[kept], totals[kept]
        target = self._arcs.target[arc]
        np.maximum.at(self._best, target, totals)
        wins = totals == self._best[target]
        self._winner[target[wins]] = wins.nonzero()[0]  # of equals the last
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
        """Hand out what all paths have, and forgets what none has."""
        last = np.unique(self._nodes)
        meeting = self._meeting(last.tolist())
        sure = self._chain(meeting)
        done = set(sure)
        live, stack = set(), [n for n in last.tolist() if n != ROOT]
        while stack:
            node = stack.pop()
            if node not in live and node not in done:
                live.add(node)
                if self._before[node] != ROOT:
                    stack.append(self._before[node])
        handed = [(self._events[n], self._starts[n]) for n in sure]
        order = sorted(live)
        number = dict.fromkeys([ROOT, *done], ROOT) | {node: i for i, node in enumerate(order)}
        self._nodes = np.array([number[n] for n in self._nodes.tolist()])
        self._before = [number[self._before[n]] for n in order]
        self._events = [self._events[n] for n in order]
        self._starts = [self._starts[n] for n in order]
        # Sums of an endless stream must not lose their digits.
        self._totals -= self._totals.max()
        return handed

    def _meeting(self, nodes: list[int]) -> int:
        """The last node that the ways to all these have in common."""
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
        """Nodes from the first up to this one."""
        found = []
        while node != ROOT:
            found.append(node)
            node = self._before[node]
        return found[::-1]

    def _path(self, place: int) -> list[tuple[int, int]]:
        chain = self._chain(int(self._nodes[place]))
        return [(self._events[n], self._starts[n]) for n in chain]
