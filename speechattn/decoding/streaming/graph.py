"""Search over a decoding graph, chunk by chunk."""

import math
from collections import deque

from torch import Tensor

from speechattn.decoding.ctc import TokenSpan
from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.online_search import OnlineSearch
from speechattn.decoding.streaming.base import StabilityTracker, StreamTokens


class GraphStream:
    """Search over a decoding graph: a token is certain when all paths have it.

    Args:
        search: over the graph.
        graph: that it searches.
        weight: of the graph's scores.
        settle: frames after which a token is certain, too, that the best path has had for so long;
            should the best path change after that, it stays nevertheless. inf for never.
        longest: frames whose posteriors are remembered, for the times and the confidence of tokens.
    """

    def __init__(
        self,
        search: OnlineSearch,
        graph: Graph,
        weight: float,
        settle: float = math.inf,
        longest: int = 200,
    ):
        self._stability = StabilityTracker(settle)
        self._search = search
        self._graph = graph
        self._weight = weight
        self._frames = 0
        self._done = 0  # frames of what was handed out
        self._held: deque[Tensor] = deque(maxlen=longest)  # posteriors (V,) of the last frames

    def accept(self, log_probs: Tensor) -> StreamTokens:
        sure = self._search.accept(log_probs.float().cpu().numpy() / self._weight)
        self._frames += len(log_probs)
        self._held.extend(log_probs.exp().cpu().unbind(0))
        spans = self._spans(sure + self._search.best())
        agreed = sum(span.start <= sure[-1][1] for span in spans) if sure else 0
        stable = max(agreed, self._stability.update([span.token for span in spans], self._frames))
        self._stability.take(stable)
        if stable:
            self._done = spans[stable - 1].start + 1
        return StreamTokens(spans[:stable], spans[stable:])

    def finish(self) -> list[TokenSpan]:
        return self._spans(self._search.finish())

    def size(self) -> int:
        return sum(map(len, self._held)) + len(self._stability) + self._search.size()

    def _spans(self, events: list[tuple[int, int]]) -> list[TokenSpan]:
        """Return the tokens not yet handed out, with the frames where they are the best label."""
        spans = []
        first = self._frames - len(self._held)
        events = [event for event in events if event[1] >= self._done]
        starts = [start for _, start in events]
        for token, start, stop in zip(
            self._graph.units(event for event, _ in events),
            starts,
            [*starts[1:], self._frames],
            strict=False,  # of no events there is an end all the same
        ):
            end = start + 1
            while first <= end < stop and int(self._held[end - first].argmax()) == token:
                end += 1
            seen = [float(self._held[t - first][token]) for t in range(max(start, first), end)]
            spans.append(TokenSpan(token, start, end, sum(seen) / max(len(seen), 1)))
        return spans
