"""The n best sentences of a lattice.

A lattice has a path for each way to spread a sentence over its frames. Determinisation, which lists
all sentences, can take any amount of memory. Here prefixes grow by one event at a time in A* order,
with the exact score of the best completion, so only prefixes of the n best sentences are expanded.
"""

import heapq
from collections import defaultdict
from itertools import count as counter

import numpy as np

from speechattn.decoding.fst.lattice import Lattice, best_to_end, best_with_events
from speechattn.decoding.fst.path import GraphPath


def nbest(lattice: Lattice, count: int) -> list[GraphPath]:
    """Return at most `count` best paths, best first, one for each sequence of events."""
    ahead = best_to_end(lattice)  # (S,)
    if not np.isfinite(ahead[0]):
        return []
    first = np.searchsorted(lattice.source, np.arange(lattice.states + 1)).tolist()
    target, output = lattice.target.tolist(), lattice.output.tolist()
    scores, final = lattice.scores.tolist(), lattice.final.tolist()
    ahead = ahead.tolist()
    found: list[GraphPath] = []
    number = counter()  # breaks ties: first come, first served
    # A prefix: minus its best total, its events, the states they lead to; None once it has ended.
    heap = [(-ahead[0], next(number), (), {0: 0.0})]
    while heap and len(found) < count:
        _, _, events, reached = heapq.heappop(heap)
        if reached is None:
            found.append(best_with_events(lattice, events))
            continue
        ended = -np.inf
        after: dict[int, dict[int, float]] = defaultdict(dict)
        states = list(reached)
        heapq.heapify(states)
        while states:  # numbers rise along every path
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
