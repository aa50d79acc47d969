"""CTC searches that go on from chunk to chunk, and say which of their tokens are sure.

Legend: K prefixes kept, T frames, V units.

Each is the search of the same name over whole utterances (`speechattn.decoding`), given frames as
they come. What it remembers is bounded: tokens that are sure are handed out and forgotten.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from speechattn.decoding.ctc import AlignmentError, TokenSpan, ctc_forced_align
from speechattn.decoding.ctc_beam import PrefixBeam, trace
from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.online_search import OnlineSearch
from speechattn.decoding.options import DecodeOptions
from speechattn.decoding.scorers import Scorer
from speechattn.units import BLANK


@dataclass(frozen=True)
class Found:
    """What a search makes of the frames so far.

    Attributes:
        stable: tokens that will not change, each handed out once; frames counted from where the
            search began.
        pending: those after them, which may change.
        sure: so many of the first pending ones are sure too, but last on.
    """

    stable: list[TokenSpan] = field(default_factory=list)
    pending: list[TokenSpan] = field(default_factory=list)
    sure: int = 0


class StreamSearch(Protocol):
    """Reads the frames of one utterance."""

    def accept(self, log_probs: Tensor) -> Found:
        """The next frames (T, V)."""

    def finish(self) -> list[TokenSpan]:
        """There are no more frames: the tokens that were pending."""

    def size(self) -> int:
        """Numbers that are remembered."""


class GreedySearch:
    """The best label of each frame: a token is sure as soon as it is there."""

    def __init__(self) -> None:
        self._frames = 0
        self._open: TokenSpan | None = None  # its score is a sum of posteriors

    def accept(self, log_probs: Tensor) -> Found:
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
        return Found(closed, pending, sure=len(pending))

    def finish(self) -> list[TokenSpan]:
        last, self._open = self._open, None
        return [] if last is None else [_with_mean(last)]

    def size(self) -> int:
        return 1


def _with_mean(span: TokenSpan) -> TokenSpan:
    return TokenSpan(span.token, span.start, span.end, span.score / (span.end - span.start))


class Standing:
    """Since when each of the best tokens has been among them, all before it unchanged.

    Args:
        settle: frames after which a token is taken for sure; inf for never.
    """

    def __init__(self, settle: float):
        self.settle = settle
        self._since: list[tuple[int, int]] = []  # a token, and a frame

    def update(self, tokens: Sequence[int], frame: int) -> int:
        """How many of the best tokens after a frame have stood for long enough."""
        pairs = enumerate(zip(self._since, tokens, strict=False))
        kept = next((i for i, ((old, _), token) in pairs if old != token), None)
        kept = min(len(self._since), len(tokens)) if kept is None else kept
        self._since = self._since[:kept] + [(token, frame) for token in tokens[kept:]]
        return sum(frame - since >= self.settle for _, since in self._since)

    def take(self, count: int) -> None:
        """The first of them were handed out."""
        self._since = self._since[count:]

    def __len__(self) -> int:
        return len(self._since)


class BeamSearch:
    """CTC prefix beam search: a token is sure when all prefixes that stand a chance have it.

    It is taken for sure, too, when the best prefix has had it for some time. CTC says of each frame
    what it is whatever the others are, so two readings of an old frame that are about as good stay
    so, and would keep a search that waits for prefixes to agree waiting. All but a language model
    that changes its mind is in the frames around it. Prefixes without what is sure are dropped.

    Args:
        vocab_size: V.
        options: `beam_size`, `frame_units`, `blank_skip`, `length_bonus`.
        device: of the frames.
        scorers: with their weights, by name, for one utterance.
        margin: a prefix whose score is this much below the best stands no chance; inf for none.
        settle: frames for which the best prefix has to have a token. Where this and the margin are
            inf, the search is that of the whole utterance exactly.
        longest: frames that are remembered at most: of what is older, the best prefix is believed.
    """

    def __init__(
        self,
        vocab_size: int,
        options: DecodeOptions,
        device: torch.device,
        scorers: Mapping[str, tuple[Scorer, float]] | None = None,
        margin: float = math.inf,
        settle: float = math.inf,
        longest: int = 200,
    ):
        self.margin = margin
        self._standing = Standing(settle)
        self.longest = longest
        self._beam = PrefixBeam(
            1,
            vocab_size,
            device,
            options.beam_size,
            options.frame_units,
            options.blank_skip,
            options.length_bonus,
            scorers,
        )
        self._places = torch.arange(options.beam_size, device=device)[None]  # (1, K)
        self._texts: list[list[int]] = [[] for _ in range(options.beam_size)]
        self._first = 0  # of the frames that are remembered
        self._held = torch.zeros(0, vocab_size, device=device)

    def accept(self, log_probs: Tensor) -> Found:
        if not len(log_probs):
            return Found([], self._spans(self._texts[self._best()]))
        lengths = torch.tensor([len(log_probs)], device=log_probs.device)
        tokens, origin = trace(*self._beam.accept(log_probs[None], lengths), self._places)
        rows = zip(origin[0].tolist(), tokens[0].tolist(), strict=True)
        self._texts = [self._texts[o] + [t for t in row if t != BLANK] for o, row in rows]
        self._held = torch.cat([self._held, log_probs])
        scores = self._scores()
        best = self._texts[self._best()]
        top = max(scores)
        alive = [
            text
            for text, score in zip(self._texts, scores, strict=True)
            if score > -math.inf and score >= top - self.margin
        ]
        spans = self._spans(best)
        now = self._first + len(self._held)
        agreed = max(_common(alive), self._standing.update(best, now))
        if len(self._held) > self.longest:
            old = now - self.longest // 2
            agreed = max(agreed, sum(span.end <= old for span in spans))
            self._forget(old if agreed == 0 else self._first)
        elif not any(alive):
            self._forget(now)
        self._settle(best[:agreed])
        self._standing.take(agreed)
        if agreed:
            self._forget(spans[agreed - 1].end)
        return Found(spans[:agreed], spans[agreed:])

    def finish(self) -> list[TokenSpan]:
        """The tokens that were pending, of the best prefix with what its end costs."""
        scores = self._beam.total
        if self._beam.extra is not None:
            scores = scores + self._beam.extra.finish()[0]
        return self._spans(self._texts[int(scores[0].argmax())])

    def size(self) -> int:
        return self._held.numel() + sum(map(len, self._texts))

    def _scores(self) -> list[float]:
        scores = self._beam.total[0]
        if self._beam.extra is not None:
            scores = scores + self._beam.extra.added[0]
        return scores.tolist()

    def _best(self) -> int:
        scores = self._scores()
        return scores.index(max(scores))

    def _settle(self, agreed: list[int]) -> None:
        """Take tokens off all prefixes, and drops those that do not begin with them."""
        if not agreed:
            return
        n = len(agreed)
        other = [text[:n] != agreed for text in self._texts]
        self._beam.drop(torch.tensor([other], device=self._places.device))
        self._texts = [text[n:] for text in self._texts]

    def _forget(self, before: int) -> None:
        self._held = self._held[max(before - self._first, 0) :]
        self._first = max(self._first, before)

    def _spans(self, tokens: list[int]) -> list[TokenSpan]:
        """The frames of tokens, on the most probable path over the frames that are remembered."""
        return aligned(self._held, tokens, self._first)


def aligned(log_probs: Tensor, tokens: list[int], first: int) -> list[TokenSpan]:
    """The frames of tokens; spread evenly where no path over the frames (T, V) spells them."""
    try:
        spans = ctc_forced_align(log_probs, tokens)
    except AlignmentError:
        n, step = len(log_probs), len(log_probs) / len(tokens)
        at = [min(int(i * step), max(n - 1, 0)) for i in range(len(tokens))]
        spans = [TokenSpan(t, i, i + 1, 0.0) for t, i in zip(tokens, at, strict=True)]
    return [TokenSpan(s.token, first + s.start, first + s.end, s.score) for s in spans]


def _common(texts: Sequence[list[int]]) -> int:
    """How many of their first tokens all texts share."""
    least, most = min(texts), max(texts)  # all others lie between these two
    return next(
        (i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b),
        min(len(least), len(most)),
    )


class GraphSearch:
    """Over a decoding graph: a token is sure when all paths have it.

    Args:
        search: over the graph.
        graph: that it searches.
        weight: of the graph's scores.
        settle: frames after which a token is sure, too, that the best path has had for so long;
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
        self._standing = Standing(settle)
        self._search = search
        self._graph = graph
        self._weight = weight
        self._frames = 0
        self._done = 0  # frames of what was handed out
        self._held: deque[Tensor] = deque(maxlen=longest)  # posteriors (V,) of the last frames

    def accept(self, log_probs: Tensor) -> Found:
        sure = self._search.accept(log_probs.float().cpu().numpy() / self._weight)
        self._frames += len(log_probs)
        self._held.extend(log_probs.exp().cpu().unbind(0))
        spans = self._spans(sure + self._search.best())
        agreed = sum(span.start <= sure[-1][1] for span in spans) if sure else 0
        stable = max(agreed, self._standing.update([span.token for span in spans], self._frames))
        self._standing.take(stable)
        if stable:
            self._done = spans[stable - 1].start + 1
        return Found(spans[:stable], spans[stable:])

    def finish(self) -> list[TokenSpan]:
        return self._spans(self._search.finish())

    def size(self) -> int:
        return sum(map(len, self._held)) + len(self._standing) + self._search.size()

    def _spans(self, events: list[tuple[int, int]]) -> list[TokenSpan]:
        """Tokens with the frames in which they are the best label, but those handed out."""
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
