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
from dataclasses import dataclass

import torch
from torch import Tensor

from speechattn.decoding.ctc import BLANK
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.prefix_scores import PrefixScores
from speechattn.decoding.scorers import Scorer
from speechattn.masks import padding_mask

# The hash of FNV-1a with another odd multiplier, in int64 that wraps around.
HASH_START, HASH_TIMES = -3750763034362895579, -7046029254386353131
# Hash, hash of the parent and last token of an empty place, and the last two of the empty prefix.
EMPTY = 0, -1, BLANK


@torch.inference_mode()
def ctc_beam_search(
    log_probs: Tensor,
    lengths: Tensor,
    beam_size: int = 10,
    nbest: int = 1,
    frame_units: int = 20,
    blank_skip: float = 1.0,
    length_bonus: float = 0.0,
    scorers: Mapping[str, tuple[Scorer, float]] | None = None,
) -> list[list[Hypothesis]]:
    """The most probable token sequences, each the sum of all CTC paths that the beam kept of it.

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
        `ctc`, the scorers' and `length`, the number of tokens.
    """
    if log_probs.size(-1) < 3:
        raise ValueError(f"log_probs need at least 3 units, got {log_probs.size(-1)}")
    if beam_size < 1 or nbest < 1 or frame_units < 0 or not 0 < blank_skip <= 1:
        raise ValueError(
            "beam_size and nbest have to be at least 1, frame_units 0 or more and blank_skip in "
            f"(0, 1], got {beam_size}, {nbest}, {frame_units} and {blank_skip}"
        )
    s = frame_units or log_probs.size(-1) - 2
    extra = None
    if not scorers and not length_bonus:
        # A prefix grown by a unit stands behind itself grown by better ones, of which at most one
        # is worth less than it looks, being the prefix's last token. So no unit behind the first
        # K + 1 gets into the beam.
        s = min(s, beam_size + 1)
    else:
        b, _, v = log_probs.shape
        extra = PrefixScores(scorers or {}, length_bonus, b, beam_size, v, log_probs.device)
    frames = _Frames.of(log_probs, lengths, s, blank_skip)
    total, chosen = _search(frames, beam_size, extra)
    return _collect(frames, total, chosen, extra, min(nbest, beam_size))


@dataclass(frozen=True)
class _Frames:
    """What the search reads: the frames that are not skipped, those of an utterance first.

    Attributes:
        log_probs: (B, T, V).
        blank: (B, T, 1) float64, log-probability of blank; 0 on padding.
        units: (B, T, 1 + S) int64, the units by which prefixes may grow, after a blank for those
            that do not.
        growth: (B, T, S) float64, their log-probabilities; -inf on padding.
        closed: (B, T, 1) float64, 0, and -inf on padding.
        gap: (B, T, 1) bool, whether frames were skipped before this one.
        padded: for each frame whether it is padding in any utterance.
        gaps: for each frame whether `gap` is true for any.
        skipped: (B,) float64, log-probability of blank in all skipped frames.
    """

    log_probs: Tensor
    blank: Tensor
    units: Tensor
    growth: Tensor
    closed: Tensor
    gap: Tensor
    padded: list[bool]
    gaps: list[bool]
    skipped: Tensor

    def inputs(self) -> tuple[Tensor, ...]:
        """What a step reads, (B, T, ...) each."""
        growing = self.units[:, :, None, 1:]  # (B, T, 1, S)
        growth = self.growth[:, :, None]
        return self.log_probs, self.blank, self.units, growing, growth, self.closed, self.gap

    @classmethod
    def of(cls, log_probs: Tensor, lengths: Tensor, units: int, blank_skip: float) -> "_Frames":
        b, t, v = log_probs.shape
        gap = torch.zeros(b, t, dtype=torch.bool, device=log_probs.device)
        skipped = torch.zeros(b, dtype=torch.float64, device=log_probs.device)
        if blank_skip < 1:
            real = padding_mask(lengths, t)
            blank = log_probs[..., BLANK].double()
            sure = real & (blank > math.log(blank_skip))
            skipped = blank.masked_fill(~sure, 0.0).sum(1)
            keep = real & ~sure
            lengths = keep.sum(1)
            t = int(lengths.max())
            at = keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :t]
            log_probs = log_probs[torch.arange(b, device=at.device)[:, None], at]
            gap = torch.nn.functional.pad(at.diff(dim=1) > 1, (min(t, 1), 0))
        pad = ~padding_mask(lengths, t)[..., None]  # (B, T, 1)
        s = min(units, v - 2)
        words = log_probs[..., 1 : v - 1]
        if s < v - 2:
            growth, best = words.topk(s, dim=-1)
            best = torch.nn.functional.pad(best + 1, (1, 0), value=BLANK)
        else:
            growth, best = words, torch.arange(v - 1, device=words.device).expand(b, t, -1)
        return cls(
            log_probs=log_probs,
            # Padding is certain blank: what has been spelt stays spelt.
            blank=log_probs[..., :1].double().masked_fill(pad, 0.0),
            units=best,
            growth=growth.double().masked_fill(pad, -math.inf),
            closed=torch.zeros(b, t, 1, dtype=torch.float64, device=pad.device).masked_fill(
                pad, -math.inf
            ),
            gap=gap[..., None],
            padded=pad[..., 0].any(0).tolist(),
            gaps=gap.any(0).tolist(),
            skipped=skipped,
        )


def _search(frames: _Frames, k: int, extra: PrefixScores | None) -> tuple[Tensor, list[Tensor]]:
    """Runs over the frames.

    Returns:
        (B, K) float64, log-probabilities of the last prefixes, -inf in an empty place; and for
        every frame what each place was taken by, an index (B, K) in [0, K * (1 + S)), by old
        place and by `units`.
    """
    b, _, s = frames.growth.shape
    like = frames.growth
    # The beam, (B, K) each: log-probability of the paths of each prefix, of those that end in a
    # blank and of those that end in its last token; hashes of the prefix and of its parent; its
    # last token, or blank. First only the empty prefix, which blanks alone spell.
    total = like.new_full((b, k), -math.inf)
    total[:, 0] = 0.0
    ends_blank, ends_label = total, torch.full_like(total, -math.inf)
    key, parent, last = (torch.full((b, k), x, device=like.device) for x in EMPTY)
    key[:, 0] = HASH_START
    relatives = torch.stack([key, parent, last])  # (3, B, K)
    none = torch.tensor(EMPTY, device=like.device)[:, None, None]
    # Every candidate's score: a row a prefix, first of what stays, then of what grows. Row 0 is
    # for what is thrown away.
    held = like.new_empty(b, 1 + k, 1 + s)
    stay, grown, flat = held[:, 1:, 0], held[:, 1:, 1:], held.flatten(1)
    candidates = flat[:, 1 + s :]
    starts = torch.arange(1, k + 1, device=like.device) * (1 + s)
    columns = torch.arange(1, s + 1, device=like.device)
    # Of the prefixes that stay, the paths by their end.
    ends = like.new_empty(2, b, k)
    by_blank, by_label = ends
    new = torch.empty_like(relatives)
    new_key, new_parent, new_last = new

    chosen: list[Tensor] = []
    rows = zip(*(x.unbind(1) for x in frames.inputs()), strict=True)
    for i, (log_probs, blank, units, growing, growth, closed, gap) in enumerate(rows):
        if frames.gaps[i]:
            # A blank was said in between.
            ends_blank = torch.where(gap, total, ends_blank)
            ends_label = ends_label.masked_fill(gap, -math.inf)
        key, parent, last = relatives.unbind()
        token = last[..., None]

        # Grow. The token that a prefix ends in counts again only after a blank.
        again = token == growing  # (B, K, S)
        before = torch.where(again, ends_blank[..., None], total[..., None])
        torch.add(before, growth, out=grown)
        # What a child in the beam gets from its parent there is no prefix of its own. Where it
        # has no parent that is in row 0, where its token is not considered in column 0.
        child = parent[..., None] == key[:, None]  # (B, K, K), of whom
        at = (child * starts).amax(2) + (again * columns).sum(2)
        flat.scatter_(1, at, -math.inf)
        # Stay, by a blank, by the last token again, or from the parent.
        path = torch.where(token == last[:, None], ends_blank[:, None], total[:, None])
        path = torch.where(child, path, -math.inf).amax(2)  # (B, K)
        own = log_probs.gather(1, last)
        if frames.padded[i]:
            own = own + closed
        torch.add(total, blank, out=by_blank)
        torch.add(torch.logaddexp(ends_label, path), own, out=by_label)
        torch.logaddexp(by_blank, by_label, out=stay)

        if extra is None:
            total, index = candidates.topk(k, dim=1)  # (B, K)
            empty = total == -math.inf
        else:
            rank, index = extra.rank(held[:, 1:], units).topk(k, dim=1)
            total, empty = candidates.gather(1, index), rank == -math.inf
        chosen.append(index)
        origin = index.div(1 + s, rounding_mode="floor")
        token = units.gather(1, index.sub(origin, alpha=1 + s))
        stays = token == BLANK
        if extra is not None:
            extra.follow(index, origin, token, ~(stays | empty))
        old_blank, old_label = ends.gather(2, origin.expand(2, b, k)).unbind()
        ends_blank = torch.where(stays, old_blank, -math.inf)
        ends_label = torch.where(stays, old_label, total)
        old = relatives.gather(2, origin.expand(3, b, k))
        torch.mul(old[0] ^ token, HASH_TIMES, out=new_key)
        new_parent.copy_(old[0])
        new_last.copy_(token)
        # An empty place may stand for a prefix that is elsewhere: it has no relatives.
        relatives = torch.where(empty, none, torch.where(stays, old, new))
    return total, chosen


def _collect(
    frames: _Frames, total: Tensor, chosen: list[Tensor], extra: PrefixScores | None, nbest: int
) -> list[list[Hypothesis]]:
    """The hypotheses of the last beam, best first."""
    ctc = total + frames.skipped[:, None]  # (B, K)
    score, parts = ctc, {"ctc": ctc}
    if extra is not None:
        added, others = extra.finish()
        score, parts = ctc + added, {"ctc": ctc} | others
    score, place = score.topk(nbest, dim=1)  # (B, nbest)
    parts = {name: x.gather(1, place).tolist() for name, x in parts.items()}
    tokens = _trace(frames.units, chosen, place)
    lengths = (tokens != BLANK).sum(2)  # (B, nbest)
    texts = tokens[tokens != BLANK].split(lengths.flatten().tolist())
    parts["length"] = lengths.tolist()
    results = []
    for row, scores in enumerate(score.tolist()):
        hypotheses = []
        for i, value in enumerate(scores):
            if i == 0 or value > -math.inf:
                of = {name: float(x[row][i]) for name, x in parts.items()}
                hypotheses.append(Hypothesis(texts[row * nbest + i].tolist(), value, of))
        results.append(hypotheses)
    return results


def _trace(units: Tensor, chosen: list[Tensor], place: Tensor) -> Tensor:
    """What each frame added to the prefixes at `place` (B, n): a token or blank, (B, n, T)."""
    if not chosen:
        return torch.zeros(*place.shape, 0, dtype=torch.int64, device=place.device)
    index = torch.stack(chosen, 1)  # (B, T, K)
    origin = index.div(units.size(2), rounding_mode="floor")
    tokens = units.gather(2, index - origin * units.size(2))
    added = []
    for token, before in zip(reversed(tokens.unbind(1)), reversed(origin.unbind(1)), strict=True):
        added.append(token.gather(1, place))
        place = before.gather(1, place)
    return torch.stack(added[::-1], 2)
