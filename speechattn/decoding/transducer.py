"""Searches with a transducer, over all hypotheses of all utterances at once.

Legend: B utterances, K hypotheses kept for an utterance, N = B * K, T frames, U tokens, V units,
D width.

Graves, "Sequence Transduction with Recurrent Neural Networks" (1211.3711). The beam search is the
one of Kim et al., "Accelerating RNN Transducer Inference via One-Step Constrained Beam Search"
(2002.03577) and of icefall's `modified_beam_search`: at most one token a frame, so that all
hypotheses read the same frame. Of what coincides the probabilities are added, here before the best
are chosen (icefall: after). Only frames are looped over: a frame takes one step of the predictor
and one call of the joiner.

With one token a frame, equal texts come about in one way only: a hypothesis that stays, and its
parent, also in the beam, that grows by its last token. So merging is finding parents, as in
`ctc_beam`, whose hashes of texts are used here.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from speechattn.decoders.predictor import PredictorState
from speechattn.decoders.transducer import Transducer
from speechattn.decoding.ctc_beam import EMPTY, HASH_START, HASH_TIMES
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.prefix_scores import PrefixScores
from speechattn.decoding.scorers import Scorer
from speechattn.masks import padding_mask
from speechattn.units import BLANK


@torch.inference_mode()
def transducer_greedy(
    head: Transducer, hidden: Tensor, lengths: Tensor, frame_tokens: int = 1
) -> list[Hypothesis]:
    """Take the best unit after what was said, again and again; blank goes on to the next frame.

    <sos/eos> is never said: a transducer is not trained on it.

    Args:
        head: in evaluation mode.
        hidden: (B, T, D) of the encoder.
        lengths: (B,) int64; 0 gives an empty hypothesis.
        frame_tokens: tokens of a frame at most, after which a blank is free. For a model that was
            trained with the topology "modified" it is 1.

    Returns:
        B hypotheses; the score is the log-probability of the path, not of all that spell it.
    """
    if frame_tokens < 1:
        raise ValueError(f"frame_tokens is 1 at least, not {frame_tokens}")
    b, t, _ = hidden.shape
    joiner = head.joiner
    frames = joiner.encoder_projection(hidden)  # (B, T, D)
    real = padding_mask(lengths, t)
    tokens = lengths.new_full((b,), BLANK)
    predicted, state = _step(head, tokens, head.predictor.init_state(b))
    score = torch.zeros(b, dtype=torch.float64, device=hidden.device)
    said = []  # (B,) a token, or blank for none; frame_tokens of them for each frame
    for frame, here in zip(frames.unbind(1), real.unbind(1), strict=True):
        for i in range(frame_tokens):
            log_probs = joiner(frame, predicted, project=False).float().log_softmax(-1)  # (B, V)
            best, token = log_probs[:, :-1].max(-1)
            score += best.double().masked_fill(~here, 0.0)
            token = token.masked_fill(~here, BLANK)
            said.append(token)
            here = token != BLANK
            # Nobody looks at what is not there; and looking waits for the device.
            if i + 1 < frame_tokens and not here.any():
                said += [torch.full_like(token, BLANK)] * (frame_tokens - 1 - i)
                break
            predicted, state = _where(here, _step(head, token, state), (predicted, state))
    at = torch.stack(said, 1) if said else tokens.new_zeros(b, 0)  # (B, T * frame_tokens)
    rows = zip(at.tolist(), score.tolist(), strict=True)
    return [_hypothesis(row, frame_tokens, s, {"transducer": s}) for row, s in rows]


@torch.inference_mode()
def transducer_beam(
    head: Transducer,
    hidden: Tensor,
    lengths: Tensor,
    *,
    beam_size: int = 4,
    nbest: int = 1,
    length_bonus: float = 0.0,
    scorers: Mapping[str, tuple[Scorer, float]] | None = None,
) -> list[list[Hypothesis]]:
    """Return the most probable token sequences, as a beam finds them.

    A score is the sum of all paths that the beam kept of a sequence.

    Paths say one token a frame at most. With a beam that drops nothing the scores are exact, of a
    model with the topology "modified".

    Args:
        head: in evaluation mode.
        hidden: (B, T, D) of the encoder.
        lengths: (B,) int64; 0 gives an empty hypothesis.
        beam_size: K.
        nbest: hypotheses returned for an utterance, at most K.
        length_bonus: added to the score for each token, natural log.
        scorers: asked when a hypothesis gets a token, and for <eos> at the end; with their weights,
            each at least 0, by name. See `ctc_beam_search`.

    Returns:
        For each utterance at least one and up to `nbest` hypotheses, best first. `scores` has
        `transducer`, the scorers' and `length`; `frames` is of the most probable path among those
        that were added up.
    """
    if beam_size < 1 or nbest < 1:
        raise ValueError(f"beam_size and nbest are 1 at least, not {beam_size} and {nbest}")
    b, k = hidden.size(0), beam_size
    extra = None
    if scorers or length_bonus:
        extra = PrefixScores(scorers or {}, length_bonus, b, k, head.vocab_size, hidden.device)
    beam = _Beam(head, b, k, hidden.device, extra)
    frames = head.joiner.encoder_projection(hidden)[:, :, None]  # (B, T, 1, D)
    real = padding_mask(lengths, hidden.size(1))
    for frame, here in zip(frames.unbind(1), real.unbind(1), strict=True):
        beam.read(frame, here)
    return _collect(beam.total, beam.came, beam.said, extra, min(nbest, k))


class _Beam:
    """The hypotheses of a beam search, frame by frame.

    Attributes:
        total: (B, K) float64, log-probability of each.
        came: by frame, where each place's path was before it, (B, K).
        said: by frame, what each place's path said in it, (B, K).
    """

    def __init__(
        self, head: Transducer, batch: int, beam: int, device: torch.device,
        extra: PrefixScores | None,
    ):  # fmt: skip
        self.head, self.extra = head, extra
        shape = (batch, beam)
        self.units = torch.arange(head.vocab_size - 1, device=device).expand(batch, -1)
        self.total = torch.full(shape, -math.inf, dtype=torch.float64, device=device)
        self.total[:, 0] = 0.0
        self.keys, self.parents, self.last = (torch.full(shape, x, device=device) for x in EMPTY)
        self.keys[:, 0] = HASH_START
        state = head.predictor.init_state(batch * beam)
        self.predicted, self.state = _step(head, self.last.flatten(), state)
        self.rows = torch.arange(batch, device=device)[:, None]
        self.own = torch.arange(beam, device=device).expand(batch, -1)
        self.came: list[Tensor] = []
        self.said: list[Tensor] = []

    def read(self, frame: Tensor, here: Tensor) -> None:
        """Go on over a frame (B, 1, D), which utterances `here` (B,) have."""
        held, parent, via_parent = self._scores(frame, here)
        v = held.size(-1)
        rank = held.flatten(1) if self.extra is None else self.extra.rank(held, self.units)
        worth, at = rank.topk(self.total.size(1), dim=1)
        origin = at.div(v, rounding_mode="floor")
        token = at - origin * v
        grows = (token != BLANK) & (worth > -math.inf)
        if self.extra is not None:
            self.extra.follow(at, origin, token, grows)
        self.total = held.flatten(1).gather(1, at)
        turned = via_parent.gather(1, origin) & ~grows
        self.came.append(torch.where(turned, parent.gather(1, origin), origin))
        self.said.append(torch.where(turned, self.last.gather(1, origin), token))
        self._grow(origin, token, grows, empty=worth == -math.inf)

    def _scores(self, frame: Tensor, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score staying (unit 0) and growing by each unit, (B, K, V - 1).

        Returns:
            Also the place of each one's parent, and which of the two paths to the same text the
            times of its tokens are taken from, (B, K) each.
        """
        k = self.total.size(1)
        predicted = self.predicted.view(len(here), k, -1)
        logits = self.head.joiner(frame, predicted, project=False)
        log_probs = logits.float().log_softmax(-1).double()[..., :-1]  # (B, K, V - 1)
        # Padding is certain blank: what has been said stays.
        log_probs = log_probs.masked_fill(~here[:, None, None], -math.inf)
        log_probs[..., BLANK].masked_fill_(~here[:, None], 0.0)
        held = self.total[..., None] + log_probs
        # Who is whose parent: at most one is anyone's.
        kin = self.parents[:, :, None] == self.keys[:, None]  # (B, K, K)
        is_child, parent = kin.any(2), kin.to(torch.uint8).argmax(2)  # (B, K)
        stays = held[..., BLANK].clone()
        path = held[self.rows, parent, self.last].masked_fill(~is_child, -math.inf)
        # A parent grown by its child's last token is the child (of others a blank is written over,
        # which is then written anew).
        place = torch.where(is_child, parent, self.own)
        held[self.rows, place, torch.where(is_child, self.last, BLANK)] = -math.inf
        held[..., BLANK] = torch.logaddexp(stays, path)
        return held, parent, path > stays

    def _grow(self, origin: Tensor, token: Tensor, grows: Tensor, empty: Tensor) -> None:
        """Move on to the chosen hypotheses, (B, K) each."""
        index = (self.rows * self.total.size(1) + origin).flatten()
        before = self.head.predictor.select((self.predicted, *self.state), index)
        before = before[0], before[1:]
        after = _step(self.head, token.flatten(), before[1])
        self.predicted, self.state = _where(grows.flatten(), after, before)
        old_keys = self.keys.gather(1, origin)
        keys = torch.where(grows, (old_keys ^ token) * HASH_TIMES, old_keys)
        parents = torch.where(grows, old_keys, self.parents.gather(1, origin))
        last = torch.where(grows, token, self.last.gather(1, origin))
        # An empty place may stand for a text that is elsewhere: it has no relatives.
        self.keys, self.parents, self.last = (
            x.masked_fill(empty, y) for x, y in zip((keys, parents, last), EMPTY, strict=True)
        )


def _step(head: Transducer, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
    """Return the predictor's part of the joiner (N, D) after one more token (N,), and the state."""
    predicted, state = head.predictor.step(tokens, state)
    return head.joiner.predictor_projection(predicted), state


def _where(
    which: Tensor, new: tuple[Tensor, PredictorState], old: tuple[Tensor, PredictorState]
) -> tuple[Tensor, PredictorState]:
    """Return the outcome of a step where `which` (N,) is true, else what was before it."""

    def mixed(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(which.view(-1, *(1 for _ in x.shape[1:])), x, y)

    return mixed(new[0], old[0]), tuple(mixed(*pair) for pair in zip(new[1], old[1], strict=True))


def _collect(
    total: Tensor,
    came: list[Tensor],
    said: list[Tensor],
    extra: PrefixScores | None,
    nbest: int,
) -> list[list[Hypothesis]]:
    """Return the hypotheses of the last beam (B, K), best first."""
    score, parts = total, {"transducer": total}
    if extra is not None:
        added, others = extra.finish()
        score, parts = total + added, parts | others
    score, place = score.topk(nbest, dim=1)
    parts = {name: x.gather(1, place).tolist() for name, x in parts.items()}
    path = [place[:, :0]]
    for token, before in zip(reversed(said), reversed(came), strict=True):
        path.append(token.gather(1, place))
        place = before.gather(1, place)
    rows = torch.stack(path[:0:-1], 2).tolist() if came else [[[]] * nbest] * len(score)
    results = []
    for b, scores in enumerate(score.tolist()):
        hypotheses = []
        for i, value in enumerate(scores):
            if i > 0 and value == -math.inf:
                break
            of = {name: x[b][i] for name, x in parts.items()}
            of["length"] = float(sum(token != BLANK for token in rows[b][i]))
            hypotheses.append(_hypothesis(rows[b][i], 1, value, of))
        results.append(hypotheses)
    return results


def _hypothesis(said: list[int], slots: int, score: float, scores: dict[str, float]) -> Hypothesis:
    """Build a hypothesis of what each frame's `slots` hold, blank for nothing."""
    at = [i for i, token in enumerate(said) if token != BLANK]
    return Hypothesis([said[i] for i in at], score, scores, [i // slots for i in at])
