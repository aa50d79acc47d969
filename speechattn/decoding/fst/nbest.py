"""The best sentences of a lattice.

A lattice has a path for each way to spread a sentence over its frames, and as many sentences as its
frames leave open: to list them all, as a determinisation does, may take any amount of memory. Here
sentences grow by an event at a time, the one first that the best path onwards belongs to (A*, with
the exact score of what is to come), so that no more beginnings are looked at than the n best
sentences have.

Legend: S states, A arcs.
"""

import heapq
from collections import defaultdict
from itertools import count as counter

import numpy as np

from speechattn.decoding.fst.lattice import Lattice, onwards, spoken
from speechattn.decoding.fst.path import Path


def nbest(lattice: Lattice, count: int) -> list[Path]:
    """The best paths of a lattice, no two of the same events, best first.

    Paths that say the same in other frames are one: the best of them.

    Args:
        lattice: some path of it ends.
        count: how many at most.
    """
    ahead = onwards(lattice)  # (S,) the best that is to come
    if not np.isfinite(ahead[0]):
        return []
    first = np.searchsorted(lattice.source, np.arange(lattice.states + 1)).tolist()
    target, output = lattice.target.tolist(), lattice.output.tolist()
    scores, final = lattice.scores.tolist(), lattice.final.tolist()
    ahead = ahead.tolist()
    found: list[Path] = []
    number = counter()  # of equals the first
    # A beginning: its best end, its events, the states that they lead to; none where it has ended.
    heap = [(-ahead[0], next(number), (), {0: 0.0})]
    while heap and len(found) < count:
        _, _, events, reached = heapq.heappop(heap)
        if reached is None:
            found.append(spoken(lattice, events))
            continue
        ended = -np.inf
        after: dict[int, dict[int, float]] = defaultdict(dict)
        states = list(reached)
        heapq.heapify(states)
        while states:  # their numbers rise along every path
            state = heapq.heappop(states)
            total = reached[state]
            ended = max(ended, total + final[state])
            for i in range(first[state], first[state + 1]):
                to, score = target[i], total + scores[i]
                if output[i]:
                    known = after[output[i]]
                    known[to] = max(score, known.get(to, -np.inf))
                elif to not in reached:
                    reached[to] = score
                    heapq.heappush(states, to)
                else:
                    reached[to] = max(score, reached[to])
        if ended > -np.inf:
            heapq.heappush(heap, (-ended, next(number), events, None))
        for event, known in after.items():
            best = max(score + ahead[state] for state, score in known.items())
            if best > -np.inf:
                heapq.heappush(heap, (-best, next(number), (*events, event), known))
    return found
