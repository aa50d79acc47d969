"""Beam search over any number of scorers, batched over utterances and hypotheses.

Legend: B utterances still searched, K beam, H hypotheses held for an utterance (1 at the start, at
most K), N = B * H, S candidates, T frames, U tokens, V units, P scores of a hypothesis.

Watanabe et al., "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition" (2017), with
the conventions of ESPnet's BatchBeamSearch. Three differences, each for the better hypothesis:
where a hypothesis reaches the longest length its <eos> is scored, not given away; <eos> does not
take a place in the beam before the least length; and the search ends when no running hypothesis
can overtake the ended ones, which is exact.
"""

import logging
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.scorers import PartialScorer, Scorer
from speechattn.units import BLANK

logger = logging.getLogger(__name__)

# Eq. 50 of the paper: for END_STEPS lengths in a row what ended was END_GAP worse than the best.
END_STEPS, END_GAP = 3, 10.0


@dataclass(frozen=True)
class Beam:
    """Hypotheses of B utterances.

    Attributes:
        tokens: (B, H, U) int64; of an ended hypothesis everything from its end on is <eos>.
        score: (B, H) float64, -inf where a place is empty.
        parts: (B, H, P) float64, the scores before weighting.
    """

    tokens: Tensor
    score: Tensor
    parts: Tensor

    @classmethod
    def of(cls, batch: int, hypotheses: int, parts: int, score: float, device) -> "Beam":
        """Return hypotheses of no tokens."""
        return cls(
            torch.zeros(batch, hypotheses, 0, dtype=torch.int64, device=device),
            torch.full((batch, hypotheses), score, dtype=torch.float64, device=device),
            torch.zeros(batch, hypotheses, parts, dtype=torch.float64, device=device),
        )

    def rows(self, index: Tensor) -> "Beam":
        """Return the utterances index (M,)."""
        return Beam(self.tokens[index], self.score[index], self.parts[index])

    def best(self, count: int) -> "Beam":
        """Return the `count` best hypotheses of each utterance, best first."""
        score, at = self.score.topk(count, dim=1)
        at = at[..., None]  # (B, count, 1)
        return Beam(
            self.tokens.gather(1, at.expand(-1, -1, self.tokens.size(2))),
            score,
            self.parts.gather(1, at.expand(-1, -1, self.parts.size(2))),
        )

    def merge(self, other: "Beam", eos: int) -> "Beam":
        """Return the best of both, as many as here; `other` is one token longer."""
        tokens = pad(self.tokens, (0, 1), value=eos)
        return Beam(
            torch.cat([tokens, other.tokens], 1),
            torch.cat([self.score, other.score], 1),
            torch.cat([self.parts, other.parts], 1),
        ).best(self.score.size(1))


def beam_search(
    full: dict[str, tuple[Scorer, float]],
    partial: dict[str, tuple[PartialScorer, float]],
    *,
    lengths: Tensor,
    vocab_size: int,
    beam_size: int = 10,
    nbest: int = 1,
    length_bonus: float = 0.0,
    min_length_ratio: float = 0.0,
    max_length_ratio: float = 0.0,
    pre_beam_ratio: float = 1.5,
) -> list[list[Hypothesis]]:
    """Search over a weighted sum of scorers and the length bonus.

    Args:
        full: scorers of all tokens with their weights, by name. A weight below 0 takes a score
            away, as of an internal language model.
        partial: scorers of candidates, likewise. With `full` empty all tokens are candidates.
        lengths: (B,) int64, frames, from which the limits of length follow.
        vocab_size: V; 0 is blank, V - 1 is <sos/eos>.
        beam_size: K, and the other options as of `JointSearch`.
        nbest: hypotheses returned for an utterance.
        length_bonus: added for each token, <eos> included.
        min_length_ratio: of tokens to frames.
        max_length_ratio: of tokens to frames; 0 for as many tokens as frames.
        pre_beam_ratio: `full` scorers choose int(this * beam_size) candidates for `partial` ones.

    Returns:
        For each utterance at least one and up to `nbest` hypotheses, best first.
    """
    search = _Search(
        full,
        partial,
        vocab_size=vocab_size,
        beam_size=beam_size,
        nbest=nbest,
        length_bonus=length_bonus,
        pre_beam_ratio=pre_beam_ratio,
    )
    least, most = length_limits(lengths, min_length_ratio, max_length_ratio)
    results = search.run(least, most)
    failed = [b for b, hypotheses in enumerate(results) if not hypotheses]
    if failed and min_length_ratio > 0:
        logger.warning(
            "no hypothesis of utterances %s reached min_length_ratio %g within beam %d; "
            "searched again without it",
            failed,
            min_length_ratio,
            beam_size,
        )
        again = search.run(torch.zeros_like(least), most)
        for b in failed:
            results[b] = again[b]
    return results


def length_limits(lengths: Tensor, min_ratio: float, max_ratio: float) -> tuple[Tensor, Tensor]:
    """Return the least and the largest number of tokens of each utterance, (B,) int64 each."""
    most = lengths
    if max_ratio > 0:
        most = (lengths.double() * max_ratio).long().clamp(min=1)
    least = (lengths.double() * min_ratio).long()
    return torch.minimum(least, most), most


def most_gain(scorer: Scorer | PartialScorer, weight: float) -> float:
    """Return the most that a weighted scorer can add for one token."""
    if weight < 0:
        return math.inf  # of what is far below 0
    return weight * getattr(scorer, "bonus", 0.0)


class _Search:
    """One search: scorers and options that every step needs."""

    def __init__(
        self,
        full: dict,
        partial: dict,
        *,
        vocab_size: int,
        beam_size: int,
        nbest: int,
        length_bonus: float,
        pre_beam_ratio: float,
    ):
        self.full = [scorer for scorer, _ in full.values()]
        self.full_weights = [weight for _, weight in full.values()]
        self.partial = [scorer for scorer, _ in partial.values()]
        self.names = [*full, *partial, "length"]
        weights = [*self.full_weights, *(weight for _, weight in partial.values())]
        self.weights = torch.tensor([*weights, length_bonus], dtype=torch.float64)
        self.gain = max(0.0, length_bonus) + sum(
            most_gain(scorer, weight) for scorer, weight in [*full.values(), *partial.values()]
        )
        self.vocab_size = vocab_size
        self.eos = vocab_size - 1
        self.beam_size = beam_size
        self.nbest = nbest
        # Tokens that may stand in a text: all but blank and <sos/eos>.
        pre_beam = int(pre_beam_ratio * beam_size)
        self.pre_beam = vocab_size - 2
        if self.full and self.partial:
            self.pre_beam = min(pre_beam, vocab_size - 2)

    def run(self, least: Tensor, most: Tensor) -> list[list[Hypothesis]]:
        """Search until every utterance has between `least` and `most` tokens, (B,) each."""
        b, device = len(most), most.device
        self.weights = self.weights.to(device)
        rows = torch.arange(b, device=device)  # which utterance each row of the batch is
        beam = Beam.of(b, 1, len(self.names), 0.0, device)
        ended = Beam.of(b, self.nbest, len(self.names), -math.inf, device)
        recent = torch.full((b, END_STEPS), -math.inf, dtype=torch.float64, device=device)
        token = torch.full((b,), self.eos, device=device)  # <sos>
        full_states = [scorer.start() for scorer in self.full]
        partial_states = [scorer.start() for scorer in self.partial]
        results: list[list[Hypothesis]] = [[] for _ in range(b)]
        for u in range(int(most.max()) + 1):  # a hypothesis has u tokens when the step begins
            log_probs = []
            for i, scorer in enumerate(self.full):
                scores, full_states[i] = scorer.score(token, full_states[i])  # (N, V)
                log_probs.append(scores)
            candidates = self._candidates(log_probs, len(token), device)  # (N, S)
            parts = [scores.gather(1, candidates).double() for scores in log_probs]
            parts += [
                scorer.score(candidates, state).double()
                for scorer, state in zip(self.partial, partial_states, strict=True)
            ]
            beam, origin = self._advance(beam, candidates, parts, u < least, u >= most)

            ends = beam.tokens[..., -1] == self.eos  # (B, H)
            new = replace(beam, score=beam.score.masked_fill(~ends, -math.inf))
            ended = ended.merge(new, self.eos)
            beam = replace(beam, score=beam.score.masked_fill(ends, -math.inf))
            recent = torch.cat([recent[:, 1:], new.score.amax(1, keepdim=True)], 1)

            done = self._done(beam, ended, recent, most - u)
            if bool(done.any()):
                self._collect(ended.rows(done.nonzero()[:, 0]), rows[done], results)
                keep = (~done).nonzero()[:, 0]
                if not len(keep):
                    break
                rows, least, most, recent = rows[keep], least[keep], most[keep], recent[keep]
                beam, ended, origin = beam.rows(keep), ended.rows(keep), origin[keep]
            token, origin = beam.tokens[..., -1].flatten(), origin.flatten()  # (N,)
            full_states = [
                scorer.select(state, origin)
                for scorer, state in zip(self.full, full_states, strict=True)
            ]
            partial_states = [
                scorer.extend(state, origin, token)
                for scorer, state in zip(self.partial, partial_states, strict=True)
            ]
        return results

    def _candidates(self, log_probs: list[Tensor], n: int, device) -> Tensor:
        """Return the tokens to consider after each hypothesis, (N, S).

        The last of them is <eos>; one that the pre-beam picked before it takes a place there, as
        in ESPnet, and is passed over later.
        """
        if self.pre_beam < self.vocab_size - 2:
            total = sum(w * x for w, x in zip(self.full_weights, log_probs, strict=True))
            best = total[:, BLANK + 1 :].topk(self.pre_beam, dim=1).indices + BLANK + 1
        else:
            best = torch.arange(BLANK + 1, self.eos, device=device).expand(n, -1)
        return pad(best, (0, 1), value=self.eos)

    def _advance(
        self, beam: Beam, candidates: Tensor, parts: list[Tensor], short: Tensor, full: Tensor
    ) -> tuple[Beam, Tensor]:
        """Extend hypotheses by candidates and keeps the K best of each utterance.

        Args:
            beam: of H hypotheses.
            candidates: (N, S).
            parts: what each candidate adds, by scorer, (N, S) each.
            short: (B,) bool, too short to end.
            full: (B,) bool, too long to go on.

        Returns:
            The new beam, and the flat index in the old one of what each hypothesis extends.
        """
        b, h = beam.score.shape
        s = candidates.size(1)
        added = torch.stack([*parts, torch.ones_like(parts[0])], -1)  # (N, S, P)
        # A weight of 0 must not turn an impossible token into nan.
        total = (added * self.weights).nan_to_num(nan=0.0, neginf=-math.inf).sum(-1)
        total = total.view(b, h, s) + beam.score[..., None]
        total[..., -1].masked_fill_(short[:, None], -math.inf)
        twice = candidates[:, :-1].view(b, h, -1) == self.eos
        total[..., :-1].masked_fill_(full[:, None, None] | twice, -math.inf)
        score, at = total.flatten(1).topk(min(self.beam_size, h * s), dim=1)  # (B, K)
        flat = at + torch.arange(b, device=at.device)[:, None] * (h * s)
        origin = flat // s  # (B, K)
        tokens = torch.cat(
            [beam.tokens.flatten(0, 1)[origin], candidates.flatten()[flat][..., None]], -1
        )
        new_parts = beam.parts.flatten(0, 1)[origin] + added.flatten(0, 1)[flat]
        return Beam(tokens, score, new_parts), origin

    def _done(self, beam: Beam, ended: Beam, recent: Tensor, remaining: Tensor) -> Tensor:
        """Return of which utterances the search may end, (B,) bool.

        Scores fall with every token but for what is given as a bonus, so no running hypothesis ends
        above its score plus the most that the `remaining` tokens can gain. Where that makes the
        bound useless, or places beyond the first are still open, the paper's end detection decides.
        """
        running = beam.score.amax(1)
        # No gain without a token to come, however large it might be.
        bound = torch.where(remaining > 0, running + self.gain * remaining.clamp(min=1), running)
        over = (bound <= ended.score[:, -1]) | (running == -math.inf)
        best = ended.score[:, 0]
        faded = (recent.isfinite() & (recent < best[:, None] - END_GAP)).all(1)
        return over | (faded & ((bound <= best) | (self.gain > 0)))

    def _collect(self, ended: Beam, rows: Tensor, results: list[list[Hypothesis]]) -> None:
        """Write the hypotheses of finished utterances into `results`."""
        columns = (ended.tokens.tolist(), ended.score.tolist(), ended.parts.tolist())
        for row, *utterance in zip(rows.tolist(), *columns, strict=True):
            for tokens, score, parts in zip(*utterance, strict=True):
                if score > -math.inf:
                    tokens = tokens[: tokens.index(self.eos)]
                    scores = dict(zip(self.names, parts, strict=True))
                    results[row].append(Hypothesis(tokens, score, scores))
