"""What scores hypotheses: a small protocol, the decoder, and CTC prefixes.

Legend: B utterances, N hypotheses, M hypotheses chosen from N, S candidates, T frames, V units.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from speechattn.decoders import Decoder, DecoderState
from speechattn.masks import padding_mask
from speechattn.units import BLANK

# What a frame gives a label that it excludes; finite, because inf - inf is nan. A token that costs
# a prefix half of it or more has used such a frame: it is impossible.
LOG_FLOOR = -1e5

# Of a sum of probabilities in float32: an addend that underflowed was below 1e-38, and as many as
# there are frames do not change such a sum.
SMALLEST_SUM = 1e-28
# Less than this times a probability changes no such sum either.
SMALLEST_WEIGHT = 1e-36


class Scorer(Protocol):
    """Scores every token after every hypothesis.

    States are values: methods return new ones and change none. No score exceeds 0, since the
    search's end relies on it; a scorer that gives more says by an attribute `bonus` how much it may
    give a token at most.
    """

    def start(self) -> Any:
        """Return the state of B empty hypotheses, one an utterance."""

    def score(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Feed the last token of each hypothesis (N,), <sos> at first.

        Returns:
            What each next token adds to the score (N, V), and the state with `token` in it.
        """

    def select(self, state: Any, index: Tensor) -> Any:
        """Return the state of hypotheses index (M,), which may drop, reorder and repeat."""


class PartialScorer(Protocol):
    """Scores chosen tokens only, being too expensive for all. No score exceeds 0."""

    def start(self) -> Any:
        """Return the state of B empty hypotheses, one an utterance."""

    def score(self, candidates: Tensor, state: Any) -> Tensor:
        """Return what each of the candidates (N, S) adds to its hypothesis's score, (N, S)."""

    def extend(self, state: Any, index: Tensor, token: Tensor) -> Any:
        """Return the state of hypotheses index (M,), each with its token (M,) appended."""


class DecoderScorer:
    """The attention decoder as a scorer.

    Args:
        decoder: in evaluation mode.
        hidden: (B, T, D), the encoder's output.
        lengths: (B,) int64.
    """

    def __init__(self, decoder: Decoder, hidden: Tensor, lengths: Tensor):
        self.decoder = decoder
        self.hidden = hidden
        self.lengths = lengths

    def start(self) -> DecoderState:
        return self.decoder.init_state(self.hidden, self.lengths)

    def score(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        return self.decoder.step(token, state)

    def select(self, state: DecoderState, index: Tensor) -> DecoderState:
        return state.select(index)


@dataclass(frozen=True)
class CtcState:
    """Forward variables of N prefixes.

    Attributes:
        spelt: log-probability that frames 0..t spell the prefix, (N, T) float64.
        blank: the same where frame t is a blank.
        prefix: log-probability of all that starts with the prefix, (N,) float64.
        last: the last token, -1 for the empty prefix, (N,) int64.
        row: the utterance of each hypothesis, (N,) int64.
    """

    spelt: Tensor
    blank: Tensor
    prefix: Tensor
    last: Tensor
    row: Tensor


class CtcPrefixScorer:
    """The probability that the CTC output starts with a prefix; exact over all frames.

    Algorithm 2 of Watanabe et al., "Hybrid CTC/Attention Architecture for End-to-End Speech
    Recognition" (2017), also the score of CTC-prefix rescoring (2110.05909). Its recursions over
    frames are linear, so each is written as one cumulative sum: with X[t] the sum of log p up to
    frame t, g[t] = log p[t] + logaddexp(g[t-1], a[t]) is X[t] + logcumsumexp(a[t] - X[t-1]).

    Args:
        log_probs: (B, T, V), blank first and <sos/eos> last.
        lengths: (B,) int64, each at least 1.
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor):
        b, t, v = log_probs.shape
        self.eos = v - 1
        self.last_frame = lengths - 1
        x = log_probs.float().transpose(1, 2).clamp(min=LOG_FLOOR).contiguous()  # (B, V, T)
        if int(lengths.min()) < t:
            # Beyond an utterance's end only blanks, certain ones: what has been spelt stays spelt.
            padding = ~padding_mask(lengths, t)[:, None]  # (B, 1, T)
            x.masked_fill_(padding, LOG_FLOOR)
            x[:, BLANK].masked_fill_(padding[:, 0], 0.0)
        self.log_probs = x
        self.probs = x.exp()
        self.blank_sum = x[:, BLANK].double().cumsum(-1)  # (B, T)

    def start(self) -> CtcState:
        b = len(self.blank_sum)
        device = self.blank_sum.device
        return CtcState(
            spelt=self.blank_sum,
            blank=self.blank_sum,
            prefix=self.blank_sum.new_zeros(b),
            last=torch.full((b,), -1, device=device),
            row=torch.arange(b, device=device),
        )

    def score(self, candidates: Tensor, state: CtcState) -> Tensor:
        """Return the log-probability of each candidate after the prefix, (N, S) float64.

        <eos> is the end of the utterance: all frames spell the prefix and nothing more. Blank is
        no token: -inf.
        """
        before = self._before(state.spelt, state.last)  # (N, T)
        scores = self._enter(before, candidates, state.row)  # (N, S)
        n, s = (candidates == state.last[:, None]).nonzero(as_tuple=True)
        if len(n):  # a repeated token only counts as one where a blank stands before it
            last = state.last[n]
            again = self._before(state.blank[n], last)
            scores[n, s] = _log_dot(again, self.log_probs[state.row[n], last])
        scores = torch.where(candidates == self.eos, self._whole(state)[:, None], scores)
        scores = scores.masked_fill(candidates == BLANK, -math.inf)
        return _possible(scores, state.prefix[:, None]) - _or_zero(state.prefix)[:, None]

    def extend(self, state: CtcState, index: Tensor, token: Tensor) -> CtcState:
        last, row = state.last[index], state.row[index]  # (M,)
        # A repeated token only counts as one where a blank stands before it.
        again = (token == last)[:, None]
        before = self._before(torch.where(again, state.blank[index], state.spelt[index]), last)
        x = self.log_probs[row, token].double()  # (M, T)
        new_label = _recursion(before, x.cumsum(-1))
        new_blank = _recursion(pad(new_label[:, :-1], (1, 0), value=-math.inf), self.blank_sum[row])
        prefix = _possible(_log_dot(before, x), state.prefix[index])
        return CtcState(torch.logaddexp(new_label, new_blank), new_blank, prefix, token, row)

    def _enter(self, before: Tensor, candidates: Tensor, row: Tensor) -> Tensor:
        """Sum exp(before[t]) p(candidate, t) over t, in logs: (N, T), (N, S) -> (N, S).

        One product of probabilities, the largest of `before` taken out. What comes out so small
        that an addend may have been lost below float32's range is summed as logarithms instead.
        Frames where no hypothesis weighs anything, long before or after what it spells, are left
        out of the product.
        """
        top = before.amax(-1, keepdim=True).clamp(min=-1e30)  # of an impossible prefix all are -inf
        weights = (before - top).to(self.probs.dtype).exp()  # (N, T)
        some = (weights > SMALLEST_WEIGHT).any(0).nonzero()[:, 0]
        window = slice(int(some[0]), int(some[-1]) + 1) if len(some) else slice(0, 1)
        probs = self.probs[..., window][row[:, None], candidates]  # (N, S, window)
        # This way round the product is many times as fast as with the column on the right.
        total = torch.bmm(weights[:, None, window], probs.transpose(1, 2))[:, 0]  # (N, S)
        scores = total.double().log() + top
        n, s = (total < SMALLEST_SUM).nonzero(as_tuple=True)
        if len(n):
            scores[n, s] = _log_dot(before[n], self.log_probs[row[n], candidates[n, s]])
        return scores

    def _before(self, history: Tensor, last: Tensor) -> Tensor:
        """Return log-probabilities of the prefix before each frame, (N, T) -> (N, T)."""
        # Before the first frame only the empty prefix has been spelt.
        first = torch.where(last < 0, 0.0, -math.inf).to(history)[:, None]
        return torch.cat([first, history[:, :-1]], 1)

    def _whole(self, state: CtcState) -> Tensor:
        return state.spelt.gather(1, self.last_frame[state.row][:, None])[:, 0]


def _possible(score: Tensor, prefix: Tensor) -> Tensor:
    """Return `score`, or -inf where it or the prefix that it extends has probability 0."""
    return score.masked_fill(~(score > prefix + LOG_FLOOR / 2) | (prefix == -math.inf), -math.inf)


def _or_zero(prefix: Tensor) -> Tensor:
    return prefix.masked_fill(prefix == -math.inf, 0.0)


def _recursion(enter: Tensor, total: Tensor) -> Tensor:
    """Compute g[t] = x[t] + logaddexp(g[t-1], enter[t]), (M, T); `total` is the sum of x so far."""
    before = torch.cat([torch.zeros_like(total[:, :1]), total[:, :-1]], 1)
    return total + torch.logcumsumexp(enter - before, -1)


def _log_dot(a: Tensor, x: Tensor) -> Tensor:
    """Sum exp(a + x) over the last axis, in logs and in a's precision.

    `a` is float64 and may be thousands below zero; its largest value is taken out, so that the
    bulk can be added in x's single precision.
    """
    top = a.amax(-1, keepdim=True).clamp(min=-1e30)  # of an impossible prefix all are -inf
    return top[..., 0] + torch.logsumexp((a - top).to(x.dtype) + x, -1)
