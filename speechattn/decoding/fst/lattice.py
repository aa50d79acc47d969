"""The paths of a recording through a graph that a search did not give up.

Legend: S states, A arcs, T frames, V units; P pairs of a state and something else, such as what a
language model has heard.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from speechattn.decoding.fst.path import Path

# What is remembered beside a state (P,), and outputs (P,): the same afterwards, a score to add, and
# whether this may be at all.
Step = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Lattice:
    """An acyclic graph of paths, each arc a frame; more is better. Some path ends.

    States are in the order of their times, state 0 is the first, and arcs are sorted by the state
    that they leave.

    Attributes:
        source: (A,) int32.
        target: (A,) int32.
        label: (A,) int32, the unit of the frame, 0 for blank.
        output: (A,) int32, the number of the graph's event that begins here; 0 for none.
        graph: (A,) float32, the score of the graph's arc.
        frame: (A,) float32, the score of the unit in the frame.
        final: (S,) float32, the graph's score of ending in a state; -inf where no path ends.
        time: (S,) int32, frames before the state.
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
        """S."""
        return len(self.final)

    def __len__(self) -> int:
        """A."""
        return len(self.source)

    @property
    def scores(self) -> np.ndarray:
        """(A,) float64, graph and frame together."""
        return self.graph.astype(np.float64) + self.frame

    def frames(self) -> Iterator[slice]:
        """The arcs of each frame."""
        bounds = np.searchsorted(self.time[self.source], np.arange(self.time.max(initial=0) + 1))
        for first, last in zip(bounds[:-1], bounds[1:], strict=True):
            yield slice(int(first), int(last))

    @classmethod
    def of(
        cls,
        source: np.ndarray,
        target: np.ndarray,
        label: np.ndarray,
        output: np.ndarray,
        graph: np.ndarray,
        frame: np.ndarray,
        final: np.ndarray,
    ) -> "Lattice":
        """Arcs in any order, states in any order but for the first, each of which can be reached.

        Raises:
            ValueError: two paths to a state have different numbers of arcs.
        """
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
                raise ValueError("the arcs of a lattice have to read a frame each")
            time[reached] = here
        name = np.empty(len(final), np.int64)
        name[np.argsort(time, kind="stable")] = np.arange(len(final))
        order = np.argsort(name[source], kind="stable")
        columns = [name[source], name[target], label, output]
        columns = [np.asarray(c)[order].astype(np.int32) for c in columns]
        weights = [np.asarray(c)[order].astype(np.float32) for c in (graph, frame)]
        back = np.argsort(name)
        return cls(
            *columns, *weights, np.asarray(final, np.float32)[back], time[back].astype(np.int32)
        )


def _ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... up to last[0], then those of the next."""
    count = last - first
    return np.arange(count.sum()) + np.repeat(last - count.cumsum(), count)


def best(lattice: Lattice) -> Path | None:
    """The path of the highest score; None where no path ends."""
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
    return Path(
        tuple(lattice.output[said].tolist()),
        tuple(lattice.time[lattice.source[said]].tolist()),
        lattice.label[path],
        score,
        graph + float(lattice.graph[path].sum(dtype=np.float64)),
    )


def onwards(lattice: Lattice) -> np.ndarray:
    """(S,) float64, the score of the best path from each state to an end."""
    scores, ahead = lattice.scores, lattice.final.astype(np.float64)
    for arcs in reversed(list(lattice.frames())):
        found = scores[arcs] + ahead[lattice.target[arcs]]
        np.maximum.at(ahead, lattice.source[arcs], found)
    return ahead


def total(lattice: Lattice) -> float:
    """The logarithm of the sum of all paths' probabilities; -inf where no path ends."""
    return _log_sum(_forward(lattice, lattice.scores) + lattice.final)


def posteriors(lattice: Lattice, scale: float = 1.0) -> np.ndarray:
    """(A,) float64, the share of the paths through each arc.

    Args:
        lattice: some paths of which end.
        scale: of all scores.
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
    """(S,) the sums of what leads to each state."""
    forth = np.full(lattice.states, -np.inf)
    forth[0] = 0.0
    for arcs in lattice.frames():
        _add(forth, lattice.target[arcs], forth[lattice.source[arcs]] + scores[arcs])
    return forth


def _add(sums: np.ndarray, place: np.ndarray, scores: np.ndarray) -> None:
    """Add probabilities by their logarithms, any number of them to a place."""
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


def confidences(lattice: Lattice, path: Path, posterior: np.ndarray) -> list[float]:
    """How sure each event of a path is: the share of the paths on which it begins about there.

    About there is nearer than the events before and after it (so that a word which all paths have,
    but not in the same frame, is as sure as it ought to be).

    Args:
        lattice: all paths.
        path: one of them.
        posterior: (A,), of `posteriors`.
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
    """The product of a lattice and something that follows its outputs, as far as it goes.

    Args:
        lattice: paths.
        starts: (P,) int64, what may be remembered at the beginning.
        bound: above all that is remembered.
        step: see there.
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
        source: (A',) numbers of pairs.
        target: (A',) likewise.
        arc: (A',) of the lattice.
        score: (A',) that was added.
        state: (P,) the lattice's state of each pair.
        memory: (P,) what is remembered in it.
    """

    lattice: Lattice
    source: np.ndarray
    target: np.ndarray
    arc: np.ndarray
    score: np.ndarray
    state: np.ndarray
    memory: np.ndarray

    def with_graph(self, score: np.ndarray, final: np.ndarray) -> Lattice:
        """A lattice with other scores of the graph.

        Args:
            score: (A',).
            final: (P,), -inf where no path ends.
        """
        old = self.lattice
        columns = (old.label[self.arc], old.output[self.arc], score, old.frame[self.arc])
        return Lattice.of(self.source, self.target, *columns, final)


def spoken(lattice: Lattice, events: Sequence[int]) -> Path | None:
    """The best path that says these events; None where there is none."""
    wanted = np.append(np.asarray(events, np.int64), -1)

    def step(said: np.ndarray, output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kept = (output == 0) | (wanted[said] == output)
        return said + (output > 0), np.zeros(len(said)), kept

    found = expanded(lattice, np.zeros(1), len(wanted), step)
    ended = found.memory == len(events)
    final = np.where(ended, lattice.final[found.state], -np.inf)
    return best(found.with_graph(lattice.graph[found.arc], final))


# Of no frames.
SILENCE = Lattice.of(*[np.empty(0, np.int32)] * 6, np.zeros(1))
