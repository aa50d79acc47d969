"""Lattices: the paths through a graph that a search kept for an utterance."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from speechattn.decoding.fst.path import GraphPath

# From memories (P,) and outputs (P,) to new memories, scores to add, and bool: is this allowed?
Step = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Lattice:
    """An acyclic transducer in which each arc is a frame; scores are logs, more is better.

    States are sorted by time, state 0 is the start, and arcs are sorted by source.

    Attributes:
        source, target: (A,) int32, states.
        label: (A,) int32, the unit of the frame.
        output: (A,) int32, the number of the graph's event that begins here; 0 for none.
        graph, frame: (A,) float32, scores of the graph's arcs, and of the units in their frames.
        final: (S,) float32, the graph's final scores; -inf where no path ends.
        time: (S,) int32, frames before each state.
    """

    source: np.ndarray
    target: np.ndarray
    label: np.ndarray
    output: np.ndarray
    graph: np.ndarray
    frame: np.ndarray
    final: np.ndarray
    time: np.ndarray

    @property
    def states(self) -> int:
        """Return S."""
        return len(self.final)

    def __len__(self) -> int:
        """Return A."""
        return len(self.source)

    @property
    def scores(self) -> np.ndarray:
        """Return (A,) float64, the sums of graph and frame."""
        return self.graph.astype(np.float64) + self.frame

    def frames(self) -> Iterator[slice]:
        """Yield the arcs of each frame."""
        bounds = np.searchsorted(self.time[self.source], np.arange(self.time.max(initial=0) + 1))
        for first, last in zip(bounds[:-1], bounds[1:], strict=True):
            yield slice(int(first), int(last))

    @classmethod
    def of(cls, arcs: Sequence[np.ndarray], final: np.ndarray) -> "Lattice":
        """Make a lattice of arcs and states in any order; state 0 is the start and reaches all.

        Args:
            arcs: source, target, label, output, graph and frame, each (A,).
            final: (S,).

        Raises:
            ValueError: two paths to a state have different numbers of arcs.
        """
        source, target, label, output, graph, frame = map(np.asarray, arcs)
        time = np.full(len(final), -1)
        time[:1] = here = 0
        order = np.argsort(source, kind="stable")
        begin = np.searchsorted(source[order], np.arange(len(final) + 1))
        reached = np.zeros(1, np.int64)
        while len(reached):
            arcs = order[_ranges(begin[reached], begin[reached + 1])]
            here += 1
            reached = np.unique(target[arcs])
            if (time[reached] >= 0).any():
                raise ValueError("each arc of a lattice must read one frame")
            time[reached] = here
        name = np.empty(len(final), np.int64)
        name[np.argsort(time, kind="stable")] = np.arange(len(final))
        order = np.argsort(name[source], kind="stable")
        columns = [name[source], name[target], label, output]
        columns = [c[order].astype(np.int32) for c in columns]
        weights = [c[order].astype(np.float32) for c in (graph, frame)]
        back = np.argsort(name)
        return cls(
            *columns, *weights, np.asarray(final, np.float32)[back], time[back].astype(np.int32)
        )


def _ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return first[0], first[0] + 1, ..., last[0] - 1, first[1], ... as one array."""
    count = last - first
    return np.arange(count.sum()) + np.repeat(last - count.cumsum(), count)


def best(lattice: Lattice) -> GraphPath | None:
    """Return the path of the highest score; None if no path ends."""
    scores, total = lattice.scores, np.full(lattice.states, -np.inf)
    total[0] = 0.0
    winner = np.full(lattice.states, -1)
    for arcs in lattice.frames():
        found = total[lattice.source[arcs]] + scores[arcs]
        target = lattice.target[arcs]
        np.maximum.at(total, target, found)
        wins = found == total[target]
        winner[target[wins]] = wins.nonzero()[0] + arcs.start
    total = total + lattice.final
    state = int(total.argmax())
    if not np.isfinite(total[state]):
        return None
    score, graph, path = float(total[state]), float(lattice.final[state]), []
    while state:
        path.append(winner[state])
        state = int(lattice.source[winner[state]])
    path = np.array(path[::-1], np.int64)
    said = path[lattice.output[path] > 0]
    return GraphPath(
        tuple(lattice.output[said].tolist()),
        tuple(lattice.time[lattice.source[said]].tolist()),
        lattice.label[path],
        score,
        graph + float(lattice.graph[path].sum(dtype=np.float64)),
    )


def best_to_end(lattice: Lattice) -> np.ndarray:
    """Return (S,) float64, the score of the best path from each state to an end."""
    scores, ahead = lattice.scores, lattice.final.astype(np.float64)
    for arcs in reversed(list(lattice.frames())):
        found = scores[arcs] + ahead[lattice.target[arcs]]
        np.maximum.at(ahead, lattice.source[arcs], found)
    return ahead


def total(lattice: Lattice) -> float:
    """Return the log of the sum of all paths' probabilities; -inf if no path ends."""
    return _log_sum(_forward(lattice, lattice.scores) + lattice.final)


def posteriors(lattice: Lattice, scale: float = 1.0) -> np.ndarray:
    """Return (A,) float64, the posterior of each arc of a lattice in which some path ends.

    `scale` is a factor of all scores.
    """
    scores = scale * lattice.scores
    forth, final = _forward(lattice, scores), scale * lattice.final.astype(np.float64)
    back = final.copy()
    for arcs in reversed(list(lattice.frames())):
        onward = scores[arcs] + back[lattice.target[arcs]]
        _add(back, lattice.source[arcs], onward)
    scores = forth[lattice.source] + scores + back[lattice.target] - _log_sum(forth + final)
    return np.exp(scores)


def _forward(lattice: Lattice, scores: np.ndarray) -> np.ndarray:
    """Return (S,) the log of the sum over the paths to each state."""
    forth = np.full(lattice.states, -np.inf)
    forth[0] = 0.0
    for arcs in lattice.frames():
        _add(forth, lattice.target[arcs], forth[lattice.source[arcs]] + scores[arcs])
    return forth


def _add(sums: np.ndarray, place: np.ndarray, scores: np.ndarray) -> None:
    """Add exp(scores) to exp(sums) at the given places, in logarithms; places may repeat."""
    places, at = np.unique(place, return_inverse=True)
    highest = sums[places]
    np.maximum.at(highest, at, scores)
    base = np.where(np.isfinite(highest), highest, 0.0)  # no inf - inf
    mass = np.bincount(at, np.exp(scores - base[at]), len(places)) + np.exp(sums[places] - base)
    with np.errstate(divide="ignore"):
        sums[places] = base + np.log(mass)


def _log_sum(scores: np.ndarray) -> float:
    top = scores.max(initial=-np.inf)
    return float(top + np.log(np.exp(scores - top).sum())) if np.isfinite(top) else -np.inf


def confidences(lattice: Lattice, path: GraphPath, posterior: np.ndarray) -> list[float]:
    """Return the confidence of each event of a path, 0..1.

    It is the posterior of the event between the midpoints to the events before and after it, so
    that a word that all paths have, if in different frames, gets its full probability. `posterior`
    is (A,), from `posteriors`.
    """
    starts = np.array(path.starts, np.float64)
    edges = np.concatenate([[-np.inf], (starts[1:] + starts[:-1]) / 2, [np.inf]])
    time = lattice.time[lattice.source]
    found = []
    for i, event in enumerate(path.events):
        low, high = edges[i : i + 2]
        near = (lattice.output == event) & (time >= low) & (time < high)
        found.append(min(float(posterior[near].sum()), 1.0))
    return found


def expanded(lattice: Lattice, starts: np.ndarray, bound: int, step: Step) -> "Expanded":
    """Return the product of a lattice and an automaton that reads its outputs.

    Args:
        lattice: the paths.
        starts: (P,) int64, memories (states of the automaton) to start from.
        bound: above every memory.
        step: transitions of the automaton.
    """
    begin = np.searchsorted(lattice.source, np.arange(lattice.states + 1))
    state, memory = np.zeros(len(starts), np.int64), np.asarray(starts, np.int64)
    states, memories, columns, done = [state], [memory], [], 0
    while len(state):
        count = begin[state + 1] - begin[state]
        origin = np.repeat(np.arange(len(state)), count)
        arc = _ranges(begin[state], begin[state + 1])
        after, score, kept = step(memory[origin], lattice.output[arc])
        origin, arc, after, score = origin[kept], arc[kept], after[kept], score[kept]
        pairs, place = np.unique(
            lattice.target[arc].astype(np.int64) * bound + after, return_inverse=True
        )
        columns.append((origin + done, place + done + len(state), arc, score))
        done += len(state)
        state, memory = pairs // bound, pairs % bound
        states.append(state)
        memories.append(memory)
    columns = [np.concatenate(c) for c in zip(*columns, strict=True)]
    return Expanded(lattice, *columns, np.concatenate(states), np.concatenate(memories))


@dataclass(frozen=True)
class Expanded:
    """See `expanded`; A' arcs.

    Attributes:
        lattice: what was expanded.
        source, target: (A',) indices of pairs.
        arc: (A',) the lattice's arc.
        score: (A',) what `step` adds.
        state, memory: (P,) the lattice's state and the memory of each pair.
    """

    lattice: Lattice
    source: np.ndarray
    target: np.ndarray
    arc: np.ndarray
    score: np.ndarray
    state: np.ndarray
    memory: np.ndarray

    def with_graph(self, score: np.ndarray, final: np.ndarray) -> Lattice:
        """Return the product as a lattice with the graph's scores (A',) and final scores (P,)."""
        old = self.lattice
        columns = (old.label[self.arc], old.output[self.arc], score, old.frame[self.arc])
        return Lattice.of((self.source, self.target, *columns), final)


def best_with_events(lattice: Lattice, events: Sequence[int]) -> GraphPath | None:
    """Return the best path that has exactly these events; None if there is none."""
    wanted = np.append(np.asarray(events, np.int64), -1)

    def step(said: np.ndarray, output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kept = (output == 0) | (wanted[said] == output)
        return said + (output > 0), np.zeros(len(said)), kept

    found = expanded(lattice, np.zeros(1), len(wanted), step)
    ended = found.memory == len(events)
    final = np.where(ended, lattice.final[found.state], -np.inf)
    return best(found.with_graph(lattice.graph[found.arc], final))


# The lattice of no frames.
EMPTY_LATTICE = Lattice.of([np.empty(0, np.int32)] * 6, np.zeros(1))
