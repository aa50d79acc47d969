"""What a search over a graph finds."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Path:
    """A way through a graph.

    Attributes:
        events: numbers of the graph's events along it.
        starts: the frame of each.
        labels: (T,) int32, the unit or blank of each frame; empty where the search does not say.
        score: of the frames and of the graph together.
        graph: the graph's share of it.
        ended: the path ends where the graph lets one end; else frames ran out within a word or a
            sentence, or the search was too narrow.
    """

    events: tuple[int, ...]
    starts: tuple[int, ...]
    labels: np.ndarray
    score: float = 0.0
    graph: float = 0.0
    ended: bool = True


NOTHING = Path((), (), np.empty(0, np.int32))
LOST = Path((), (), np.empty(0, np.int32), -np.inf, ended=False)
