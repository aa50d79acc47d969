"""The result of a search over a graph."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GraphPath:
    """A path through a graph.

    Attributes:
        events: numbers of the graph's events along it.
        starts: the frame of each event.
        labels: (T,) int32, the unit of each frame; empty if the search does not tell.
        score, graph: sum of the frames' and the graph's scores, and the graph's part of it.
        ended: the path ends in a final state; else the frames ended within a word or a sentence, or
            the search was too narrow.
    """

    events: tuple[int, ...]
    starts: tuple[int, ...]
    labels: np.ndarray
    score: float = 0.0
    graph: float = 0.0
    ended: bool = True


EMPTY_PATH = GraphPath((), (), np.empty(0, np.int32))
LOST_PATH = GraphPath((), (), np.empty(0, np.int32), -np.inf, ended=False)
