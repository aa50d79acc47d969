"""The best label of each frame, chunk by chunk."""

from torch import Tensor

from speechattn.decoding.ctc import TokenSpan
from speechattn.decoding.streaming.base import StreamTokens
from speechattn.units import BLANK


class GreedyStream:
    """The best label of each frame: a token is certain as soon as it is there."""

    def __init__(self) -> None:
        self._frames = 0
        self._open: TokenSpan | None = None  # its score is a sum of posteriors

    def accept(self, log_probs: Tensor) -> StreamTokens:
        best, label = log_probs[:, :-1].max(-1)
        closed = []
        for token, score in zip(label.tolist(), best.double().exp().tolist(), strict=True):
            last, here = self._open, self._frames
            if last is not None and token == last.token:
                self._open = TokenSpan(token, last.start, here + 1, last.score + score)
            else:
                closed += self.finish()
                if token != BLANK:
                    self._open = TokenSpan(token, here, here + 1, score)
            self._frames += 1
        pending = [] if self._open is None else [_with_mean(self._open)]
        return StreamTokens(closed, pending, certain=len(pending))

    def finish(self) -> list[TokenSpan]:
        last, self._open = self._open, None
        return [] if last is None else [_with_mean(last)]

    def size(self) -> int:
        return 1


def _with_mean(span: TokenSpan) -> TokenSpan:
    return TokenSpan(span.token, span.start, span.end, span.score / (span.end - span.start))
