"""CTC prefix beam search, chunk by chunk."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from speechattn.decoding.ctc import AlignmentError, TokenSpan, ctc_forced_align
from speechattn.decoding.ctc_beam import PrefixBeam, trace
from speechattn.decoding.scorers import Scorer
from speechattn.decoding.streaming.base import StabilityTracker, StreamTokens
from speechattn.units import BLANK


class PrefixBeamStream:
    """CTC prefix beam search: a token is certain when all prefixes that stand a chance have it.

    A token is also taken for certain when the best prefix has had it for some time. CTC scores each
    frame whatever the others are, so two equally good readings of an old frame stay equally good,
    and a search that waits for all prefixes to agree would wait for ever. Only a language model can
    change its mind later. Prefixes without what is certain are dropped.

    Args:
        vocab_size: V.
        device: of the frames.
        beam_size: K, and the other options as of `ctc_beam_search`.
        frame_units: units by which prefixes may grow in a frame.
        blank_skip: frames whose blank is more probable than this are skipped.
        length_bonus: added to the score for each token.
        scorers: with their weights, by name, for one utterance.
        margin: a prefix whose score is this much below the best stands no chance; inf for none.
        settle: frames for which the best prefix has to have a token. Where this and the margin are
            inf, the search is that of the whole utterance exactly.
        longest: frames that are remembered at most: of what is older, the best prefix is believed.
    """

    def __init__(
        self,
        vocab_size: int,
        device: torch.device,
        *,
        beam_size: int,
        frame_units: int = 20,
        blank_skip: float = 1.0,
        length_bonus: float = 0.0,
        scorers: Mapping[str, tuple[Scorer, float]] | None = None,
        margin: float = math.inf,
        settle: float = math.inf,
        longest: int = 200,
    ):
        self.margin = margin
        self._stability = StabilityTracker(settle)
        self.longest = longest
        self._beam = PrefixBeam(
            1,
            vocab_size,
            device,
            beam_size=beam_size,
            frame_units=frame_units,
            blank_skip=blank_skip,
            length_bonus=length_bonus,
            scorers=scorers,
        )
        self._places = torch.arange(beam_size, device=device)[None]  # (1, K)
        self._texts: list[list[int]] = [[] for _ in range(beam_size)]
        self._first = 0  # of the frames that are remembered
        self._held = torch.zeros(0, vocab_size, device=device)

    def accept(self, log_probs: Tensor) -> StreamTokens:
        if not len(log_probs):
            return StreamTokens([], self._spans(self._texts[self._best()]))
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
        agreed = max(_common(alive), self._stability.update(best, now))
        if len(self._held) > self.longest:
            old = now - self.longest // 2
            agreed = max(agreed, sum(span.end <= old for span in spans))
            self._forget(old if agreed == 0 else self._first)
        elif not any(alive):
            self._forget(now)
        self._settle(best[:agreed])
        self._stability.take(agreed)
        if agreed:
            self._forget(spans[agreed - 1].end)
        return StreamTokens(spans[:agreed], spans[agreed:])

    def finish(self) -> list[TokenSpan]:
        """Return the tokens that were pending, of the best prefix with what its end costs."""
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
        """Align tokens to the frames that are remembered, on the most probable path."""
        return aligned(self._held, tokens, self._first)


def aligned(log_probs: Tensor, tokens: list[int], first: int) -> list[TokenSpan]:
    """Align tokens to frames (T, V); spread them evenly where no path spells them."""
    try:
        spans = ctc_forced_align(log_probs, tokens)
    except AlignmentError:
        n, step = len(log_probs), len(log_probs) / len(tokens)
        at = [min(int(i * step), max(n - 1, 0)) for i in range(len(tokens))]
        spans = [TokenSpan(t, i, i + 1, 0.0) for t, i in zip(tokens, at, strict=True)]
    return [TokenSpan(s.token, first + s.start, first + s.end, s.score) for s in spans]


def _common(texts: Sequence[list[int]]) -> int:
    """Return how many of their first tokens all texts share."""
    least, most = min(texts), max(texts)  # all others lie between these two
    return next(
        (i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b),
        min(len(least), len(most)),
    )
