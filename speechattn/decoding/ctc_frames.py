"""The frames of CTC as the prefix beam search reads them.

Legend: B utterances, S units considered in a frame, T frames, V units.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from speechattn.masks import padding_mask
from speechattn.units import BLANK

# Units that are looked at together, to find out whether the best of a frame may be among them.
BLOCK = 32


@dataclass(frozen=True)
class Frames:
    """What the search reads: the frames that are not skipped, those of an utterance first.

    Attributes:
        log_probs: flat, of all frames.
        start: (B, T, 1) int64, where in it a frame starts.
        blank: (B, T, 1) float64, log-probability of blank; 0 on padding.
        units: (B, T, 1 + S) int64, the units by which prefixes may grow, after a blank for those
            that do not.
        growth: (B, T, S) float64, their log-probabilities; -inf on padding.
        closed: (B, T, 1) float64, 0, and -inf on padding.
        gap: (B, T, 1) bool, whether frames were skipped before this one.
        padded: for each frame whether it is padding in any utterance.
        gaps: for each frame whether `gap` is true for any.
        skipped: (B,) float64, log-probability of blank in all skipped frames.
        tail: (B, 1) bool, whether the last frames were skipped.
        possible: whether no log-probability above is -inf but on padding.
    """

    log_probs: Tensor
    start: Tensor
    blank: Tensor
    units: Tensor
    growth: Tensor
    closed: Tensor
    gap: Tensor
    padded: list[bool]
    gaps: list[bool]
    skipped: Tensor
    tail: Tensor
    possible: bool

    def inputs(self) -> tuple[Tensor, ...]:
        """Return what a step reads, (B, T, ...) each."""
        each = self.units[:, :, None], self.growth[:, :, None]  # the same for all prefixes
        return self.start, self.blank, self.units, *each, self.closed, self.gap

    @classmethod
    def of(cls, log_probs: Tensor, lengths: Tensor, units: int, blank_skip: float) -> "Frames":
        b, t, v = log_probs.shape
        s = min(units, v - 2)
        real = padding_mask(lengths, t)
        blank = log_probs[..., BLANK].double()  # (B, T)
        sure = real & (blank > math.log(blank_skip))  # nothing where that is 1
        skipped = blank.masked_fill(~sure, 0.0).sum(1)
        tail = torch.nn.functional.pad(sure, (1, 0)).gather(1, lengths[:, None])
        keep = real & ~sure
        lengths = keep.sum(1)
        at = keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        at = at[:, : int(lengths.max())]  # (B, T) with what is left of T
        t = at.size(1)
        gap = torch.cat([at[:, :1] > 0, at.diff(dim=1) > 1], 1)
        blank, real = blank.gather(1, at), padding_mask(lengths, t)
        at = at + log_probs.size(1) * torch.arange(b, device=at.device)[:, None]
        # Of real frames alone: with many units, choosing takes longer than the search.
        rows = log_probs.reshape(-1, v)
        growth = log_probs.new_full((b, t, s), -math.inf)
        best = at.new_full((b, t, s), BLANK)
        growth[real], best[real] = best_units(rows, at[real], s)
        pad = ~real[..., None]  # (B, T, 1)
        growth, blank = growth.double(), blank[..., None]
        possible = bool((growth.isfinite().all(2, keepdim=True) & blank.isfinite() | pad).all())
        closed = blank.new_zeros(b, t, 1)
        return cls(
            log_probs=rows.flatten(),
            start=at[..., None] * v,
            # Padding is certain blank: what has been spelt stays spelt.
            blank=blank.masked_fill(pad, 0.0),
            units=torch.nn.functional.pad(best, (1, 0), value=BLANK),
            growth=growth.masked_fill(pad, -math.inf),
            closed=closed.masked_fill(pad, -math.inf),
            gap=gap[..., None],
            padded=pad[..., 0].any(0).tolist(),
            gaps=gap.any(0).tolist(),
            skipped=skipped,
            tail=tail,
            possible=possible,
        )


def best_units(rows: Tensor, at: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """Return the S best units of frames at (M,) of rows (N, V), without blank and <sos/eos>.

    Returns:
        Their log-probabilities and ids, (M, S) each.
    """
    m, v = len(at), rows.size(1)
    blocks = (v - 2) // BLOCK
    if blocks < 2 * s:
        words = rows[at, 1 : v - 1]
        if s == v - 2:
            return words, torch.arange(1, v - 1, device=rows.device).expand(m, -1)
        growth, best = words.topk(s, dim=1)
        return growth, best + 1
    # The S best are in the S blocks with the highest peaks, or behind the last block.
    end = 1 + blocks * BLOCK
    split = rows[:, 1:end].unflatten(1, (blocks, BLOCK))
    # Of all frames: reading those that are not wanted takes less time than copying those that are.
    block = split.amax(2)[at].topk(s, dim=1).indices  # (M, S)
    inside = split[at[:, None], block].flatten(1)  # (M, S * BLOCK)
    growth, place = torch.cat([inside, rows[at, end : v - 1]], 1).topk(s, dim=1)
    which = place.div(BLOCK, rounding_mode="floor")
    behind = blocks + which - s  # S blocks stand before what is behind the last
    start = torch.where(which < s, block.gather(1, which.clamp(max=s - 1)), behind)
    return growth, 1 + start * BLOCK + place % BLOCK
