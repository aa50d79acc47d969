"""CTC prefix beam search in tensors, over all prefixes of all utterances at once.

Legend: B utterances, K prefixes kept for an utterance, N = B * K, S units considered in a frame,
T frames, U tokens, V units, P scorers.

Graves and Jaitly, "Towards End-to-End Speech Recognition with Recurrent Neural Networks" (2014);
with scorers Hannun et al., "First-Pass Large Vocabulary Continuous Speech Recognition using
Bi-Directional Recurrent DNNs" (1408.2873). Only frames are looped over: a frame takes the same
few tensor operations whatever the batch and the beam.

In a frame a prefix stays (by a blank, or by its last token again) or grows by a token. Of all
these only one kind coincide: a prefix of the beam, and its parent, also in the beam, grown by its
last token. So merging is finding parents. Prefixes are known by a 64-bit hash: two of the same
beam are taken for one another about once in 1e19 / (B K K T) searches.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from speechattn.decoding.ctc_frames import Frames
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.prefix_scores import PrefixScores
from speechattn.decoding.scorers import Scorer
from speechattn.units import BLANK

# The hash of FNV-1a with another odd multiplier, in int64 that wraps around.
HASH_START, HASH_TIMES = -3750763034362895579, -7046029254386353131
# Hash, hash of the parent and last token of an empty place, and the last two of the empty prefix.
EMPTY = 0, -1, BLANK


@torch.inference_mode()
def ctc_beam_search(
    log_probs: Tensor,
    lengths: Tensor,
    *,
    beam_size: int = 10,
    nbest: int = 1,
    frame_units: int = 20,
    blank_skip: float = 1.0,
    length_bonus: float = 0.0,
    scorers: Mapping[str, tuple[Scorer, float]] | None = None,
) -> list[list[Hypothesis]]:
    """Return the most probable token sequences by CTC, as a beam finds them.

    A score is the sum of all paths that the beam kept of a sequence.

    With a beam that drops nothing the scores are exact. Otherwise they lack the paths whose
    beginnings were dropped: a score is at most the true one. <sos/eos> is never a label.

    A scorer is asked when a prefix gets a token, and for <eos> at the end. One whose state is a
    tensor with a row for each hypothesis is asked once a frame for all new prefixes; one of
    another state (a decoder's caches) is asked once for each origin in time of the prefixes that
    grow, which is as exact but slow: for such, rescoring an n-best list is the cheaper way.

    Args:
        log_probs: (B, T, V), blank first and <sos/eos> last, V at least 3.
        lengths: (B,) int64; 0 gives an empty hypothesis.
        beam_size: K.
        nbest: hypotheses returned for an utterance, at most K.
        frame_units: S, the best units of a frame (blank apart), by which prefixes may grow in it;
            0 for all of them. A unit beyond them starts no new prefix in that frame; what goes
            from one prefix of the beam to another, and blanks and repeats, always count. Without
            scorers and bonus the first K + 1 find all that more would, and no more are looked
            at. Scorers do not change which units these are.
        blank_skip: a frame whose blank has a posterior above this is taken for certain blank, and
            costs nothing; 1 looks at all frames. Every hypothesis keeps the blank's probability
            of the n frames skipped. It loses the paths with a token in one of them, so a
            probability falls by at most n * (1 - blank_skip) of the probability of all paths.
        length_bonus: added to the score for each token, natural log; <eos> does not count.
        scorers: with their weights, each at least 0, by name.

    Returns:
        For each utterance at least one and up to `nbest` hypotheses, best first. `scores` has
        `ctc`, the scorers' and `length`, the number of tokens. Where nothing is possible (all
        scores are -inf) there is one, empty; of an utterance with nan among its log-probabilities
        the hypotheses mean nothing.
    """
    if log_probs.size(-1) < 3:
        raise ValueError(f"log_probs need at least 3 units, got {log_probs.size(-1)}")
    if beam_size < 1 or nbest < 1 or frame_units < 0 or not 0 < blank_skip <= 1:
        raise ValueError(
            "beam_size and nbest have to be at least 1, frame_units 0 or more and blank_skip in "
            f"(0, 1], got {beam_size}, {nbest}, {frame_units} and {blank_skip}"
        )
    b, _, v = log_probs.shape
    device = log_probs.device
    beam = PrefixBeam(
        b,
        v,
        device,
        beam_size=beam_size,
        frame_units=frame_units,
        blank_skip=blank_skip,
        length_bonus=length_bonus,
        scorers=scorers,
    )
    units, chosen = beam.accept(log_probs, lengths)
    return _collect(units, chosen, beam, min(nbest, beam_size))


class PrefixBeam:
    """The prefixes of a search, whose frames may come in pieces.

    Args:
        batch: B.
        vocab_size: V, of all pieces.
        device: of the search.
        beam_size: as of `ctc_beam_search`, as are all others.
        frame_units: the same.
        blank_skip: the same.
        length_bonus: the same.
        scorers: the same.
    """

    def __init__(
        self,
        batch: int,
        vocab_size: int,
        device: torch.device,
        *,
        beam_size: int = 10,
        frame_units: int = 20,
        blank_skip: float = 1.0,
        length_bonus: float = 0.0,
        scorers: Mapping[str, tuple[Scorer, float]] | None = None,
    ):
        self.blank_skip = blank_skip
        self.frame_units = frame_units or vocab_size - 2
        self.extra = None
        if not scorers and not length_bonus:
            # A prefix grown by a unit stands behind itself grown by better ones, of which at most
            # one is worth less than it looks, being the prefix's last token. So no unit behind the
            # first K + 1 gets into the beam.
            self.frame_units = min(self.frame_units, beam_size + 1)
        else:
            of = batch, beam_size, vocab_size, device
            self.extra = PrefixScores(scorers or {}, length_bonus, *of)
        # Places 1 to K are the beam, place 0 is no prefix. First there is only the empty one, which
        # blanks alone spell.
        self._bits = torch.zeros(batch, 7, 1 + beam_size, dtype=torch.int64, device=device)
        real = self._bits.view(torch.float64)
        real[:, TOTAL : ENDS_LABEL + 1] = -math.inf
        self._bits[:, KEY], self._bits[:, PARENT], self._bits[:, LAST] = (x for x in EMPTY)
        real[:, TOTAL : ENDS_BLANK + 1, 1] = 0.0
        self._bits[:, KEY, 1] = HASH_START
        self._skipped: Tensor | float = 0.0

    @property
    def total(self) -> Tensor:
        """Return (B, K) float64, log-probability of each prefix, -inf in an empty place."""
        return self._bits.view(torch.float64)[:, TOTAL, 1:] + self._skipped

    def accept(self, log_probs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Go on over the next frames.

        Args:
            log_probs: (B, T, V).
            lengths: (B,) int64; only the last piece of an utterance may be padded. (Frames that are
                skipped pad others: with `blank_skip` below 1, pieces are of one utterance.)

        Returns:
            `units` (B, T', 1 + S) of the T' frames that were not skipped, and for each what each
            place was taken by, (B, T', K); see `trace`.
        """
        frames = Frames.of(log_probs, lengths, self.frame_units, self.blank_skip)
        chosen = _search(frames, self._bits, self.extra)
        self._skipped = self._skipped + frames.skipped[:, None]
        return frames.units, chosen

    def drop(self, places: Tensor) -> None:
        """Forget the prefixes at `places` (B, K) bool."""
        nothing = self._bits[:, :, :1]
        self._bits[..., 1:] = torch.where(places[:, None], nothing, self._bits[..., 1:])


# Rows of what is known of a prefix: log-probability of its paths, of those that end in a blank and
# of those that end in its last token; its hash and its parent's, its last token, and whether that
# is the token before it too. In one tensor of 64 bits, so that they move together.
TOTAL, ENDS_BLANK, ENDS_LABEL, KEY, PARENT, LAST, TWICE = range(7)


def _search(frames: Frames, bits: Tensor, extra: PrefixScores | None) -> Tensor:
    """Run over the frames, and change what is known of the prefixes, `bits` (B, 7, 1 + K).

    Returns:
        For every frame what each place was taken by, (B, T, K) indices in [0, (1 + K) * (1 + S)),
        by old place, from 1, and by `units`.
    """
    b, t, _ = frames.growth.shape
    work = _Workspace(frames, bits, extra)
    chosen = torch.empty(t, b, work.k, dtype=torch.int64, device=bits.device)
    rows = zip(chosen, *(x.unbind(1) for x in frames.inputs()), strict=True)
    for i, (index, start, blank, units, unit_of, growth, closed, gap) in enumerate(rows):
        if frames.gaps[i]:
            # A blank was said in between.
            torch.where(gap, work.total, work.ends_blank, out=work.ends_blank)
            work.ends_label.masked_fill_(gap, -math.inf)
        own = frames.log_probs.take(start + work.last)  # (B, K)
        if frames.padded[i]:
            own = own + closed
        work.score(unit_of, growth, own, blank)
        work.choose(index, units)
    torch.where(frames.tail, work.total, work.ends_blank, out=work.ends_blank)
    work.ends_label.masked_fill_(frames.tail, -math.inf)
    return chosen.transpose(0, 1)


class _Workspace:
    """Tensors that each frame reads and writes in place, views of them cut out once.

    With so few numbers a frame, most of the time would go into making tensors.
    """

    def __init__(self, frames: Frames, bits: Tensor, extra: PrefixScores | None):
        b, _, s = frames.growth.shape
        k = bits.size(2) - 1
        like = frames.growth
        self.k, self.s, self.bits, self.extra = k, s, bits, extra
        real = bits.view(torch.float64)
        self.nothing, self.beam, self.keys = (
            bits[:, :, :1].clone(),
            bits[..., 1:],
            bits[:, None, KEY],
        )
        self.before = real[:, : ENDS_BLANK + 1].flatten(1)
        self.total, self.ends_blank, self.ends_label = real[:, : ENDS_LABEL + 1, 1:].unbind(
            1
        )  # (B, K)
        _, _, _, _, parent, self.last, self.twice = self.beam.unbind(1)
        self.total_of, self.parent_of, self.last_of = (
            x[..., None] for x in (self.total, parent, self.last)
        )
        # What a prefix was, and what it becomes if it grows.
        self.old, new = torch.empty_like(self.beam), torch.empty_like(self.beam)
        self.old_key, self.old_last = self.old[:, KEY], self.old[:, LAST]
        _, new_blank, self.new_label = new.view(torch.float64)[:, : ENDS_LABEL + 1].unbind(1)
        new_blank.fill_(-math.inf)
        _, _, _, self.new_key, self.new_parent, self.new_last, self.new_twice = new.unbind(1)
        # Every candidate's score: a row a place, first of what stays, then of what grows. Row 0 is
        # for what is thrown away.
        self.held = like.new_full((b, 1 + k, 1 + s), -math.inf)
        self.stay, self.grown = self.held[:, 1:, 0], self.held[:, 1:, 1:]
        self.flat = self.held.flatten(1)
        self.starts = torch.arange(1, k + 1, device=like.device) * (1 + s)
        # What is written over growth, and where: first of prefixes that end in the token already.
        self.instead = like.new_full((b, 2 * k), -math.inf)
        self.where = torch.empty(b, 2 * k, dtype=torch.int64, device=like.device)
        self.again, self.at_again, self.at_child = (
            self.instead[:, :k], self.where[:, :k], self.where[:, k:]
        )  # fmt: skip
        # Where a prefix's last token is among the units, and where its parent is; 0 for nowhere.
        same = torch.zeros(2, b, k, 1 + max(k, s), dtype=torch.bool, device=like.device)
        self.same_unit, self.same_key = same[0, ..., : 1 + s], same[1, ..., : 1 + k]
        self.same = same.view(torch.uint8)
        self.places = torch.empty(2, b, k, dtype=torch.int64, device=like.device)
        self.column, self.place = self.places
        self.stays = torch.empty(b, k, dtype=torch.bool, device=like.device)
        self.origin = torch.empty(b, k, dtype=torch.int64, device=like.device)
        self.origins = self.origin[:, None].expand(b, 7, k)
        # All but the total, which the choice of the best brings along.
        self.mix = self.stays[:, None], self.old[:, 1:], new[:, 1:]
        self.mixed = self.beam[:, 1:]
        # Once full, a beam of possible prefixes stays full.
        self.full = extra is None and frames.possible and s + 1 >= k

    def score(self, unit_of: Tensor, growth: Tensor, own: Tensor, blank: Tensor) -> None:
        """Score what each prefix may become in a frame."""
        torch.eq(self.last_of, unit_of, out=self.same_unit)
        torch.eq(self.parent_of, self.keys, out=self.same_key)
        torch.argmax(self.same, 3, out=self.places)
        # Grow. The token that a prefix ends in counts again only after a blank; and what a child
        # in the beam gets from its parent there is no prefix of its own. (What is nowhere among
        # the units, or has no parent there, is written to column 0 or row 0.)
        torch.add(self.total_of, growth, out=self.grown)
        torch.add(self.ends_blank, own, out=self.again)
        torch.add(self.starts, self.column, out=self.at_again)
        torch.add(self.column, self.place, alpha=1 + self.s, out=self.at_child)
        self.flat.scatter_(1, self.where, self.instead)
        # Stay, by a blank, by the last token again, or from the parent.
        path = self.before.gather(1, torch.add(self.place, self.twice, alpha=1 + self.k))
        torch.add(self.total, blank, out=self.ends_blank)
        torch.add(torch.logaddexp(self.ends_label, path), own, out=self.ends_label)
        torch.logaddexp(self.ends_blank, self.ends_label, out=self.stay)

    def choose(self, index: Tensor, units: Tensor) -> None:
        """Keep the best candidates; `index` (B, K) gets what each place was taken by."""
        extra, s = self.extra, self.s
        if extra is None:
            torch.topk(self.flat, self.k, 1, out=(self.total, index))
        else:
            rank, at = extra.rank(self.held[:, 1:], units).topk(self.k, dim=1)
            torch.add(at, 1 + s, out=index)
            torch.gather(self.flat, 1, index, out=self.total)
        torch.div(index, 1 + s, rounding_mode="floor", out=self.origin)
        torch.gather(units, 1, index.sub(self.origin, alpha=1 + s), out=self.new_last)
        torch.eq(self.new_last, BLANK, out=self.stays)
        if extra is not None:
            grows = ~(self.stays | (rank == -math.inf))
            extra.follow(at, self.origin - 1, self.new_last, grows)
        torch.gather(self.bits, 2, self.origins, out=self.old)
        self.new_label.copy_(self.total)
        torch.mul(self.old_key ^ self.new_last, HASH_TIMES, out=self.new_key)
        self.new_parent.copy_(self.old_key)
        torch.eq(self.old_last, self.new_last, out=self.new_twice)
        torch.where(*self.mix, out=self.mixed)
        if not self.full:
            # An empty place may stand for a prefix that is elsewhere: it has no relatives.
            empty = (self.total if extra is None else rank) == -math.inf
            self.beam.copy_(torch.where(empty[:, None], self.nothing, self.beam))


def _collect(units: Tensor, chosen: Tensor, beam: PrefixBeam, nbest: int) -> list[list[Hypothesis]]:
    """Return the hypotheses of the last beam, best first."""
    ctc = beam.total
    score, parts = ctc, {"ctc": ctc}
    if beam.extra is not None:
        added, others = beam.extra.finish()
        score, parts = ctc + added, {"ctc": ctc} | others
    score, place = score.topk(nbest, dim=1)  # (B, nbest)
    parts = {name: x.gather(1, place).tolist() for name, x in parts.items()}
    tokens, _ = trace(units, chosen, place)
    lengths = (tokens != BLANK).sum(2)  # (B, nbest)
    texts = tokens[tokens != BLANK].split(lengths.flatten().tolist())
    parts["length"] = lengths.tolist()
    results = []
    for row, scores in enumerate(score.tolist()):
        hypotheses = []
        for i, value in enumerate(scores):
            if value > -math.inf or math.isnan(value):
                of = {name: float(x[row][i]) for name, x in parts.items()}
                hypotheses.append(Hypothesis(texts[row * nbest + i].tolist(), value, of))
            elif i == 0:  # whatever stands there, nothing at all is possible
                of = {name: 0.0 if name == "length" else -math.inf for name in parts}
                hypotheses.append(Hypothesis([], value, of))
        results.append(hypotheses)
    return results


def trace(units: Tensor, chosen: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Return where prefixes at `place` (B, n) come from, over the frames of one
    `PrefixBeam.accept`.

    Returns:
        What each frame added to them, a token or blank, (B, n, T); and their places before the
        first of these frames, (B, n).
    """
    if not chosen.size(1):
        return torch.zeros(*place.shape, 0, dtype=torch.int64, device=place.device), place
    origin = chosen.div(units.size(2), rounding_mode="floor")  # (B, T, K), 0 in an empty place
    tokens = units.gather(2, chosen - origin * units.size(2))
    came = (origin - 1).clamp_(min=0)
    added = []
    for token, before in zip(reversed(tokens.unbind(1)), reversed(came.unbind(1)), strict=True):
        added.append(token.gather(1, place))
        place = before.gather(1, place)
    return torch.stack(added[::-1], 2), place
