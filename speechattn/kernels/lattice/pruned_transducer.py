"""The pruned transducer (Kuang et al., 2206.13236): a simple joiner selects columns.

The simple joiner adds the encoder's scores of a frame to the predictor's after u tokens. Its
normalisers are a product of matrices, so that its lattice needs no (B, T, C, V). Its alignments
select s columns of each frame, and the loss of the real joiner is the sum over the alignments
through these. The definitions are exactly those of k2 1.23.4: `rnnt_loss_smoothed`,
`get_rnnt_prune_ranges`, `do_rnnt_pruning`, `rnnt_loss_pruned`.

Legend: see `speechattn.kernels`; s columns of a frame that are kept, D width.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from speechattn.kernels.lattice.transducer import emissions
from speechattn.kernels.lattice.transducer_lattice import (
    Topology,
    arcs,
    check_lengths,
    check_shape,
    lattice,
    occupied_lattice,
)
from speechattn.kernels.precision import HALF
from speechattn.masks import without_padding

_NEVER = -float("inf")


def simple_transducer(
    am: Tensor,
    lm: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    token_lengths: Tensor,
    *,
    lm_only_scale: float = 0.0,
    am_only_scale: float = 0.0,
    delay_penalty: float = 0.0,
    topology: Topology = "regular",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of the joiner am + lm, and the posteriors of its arcs.

    The log-probabilities of arcs are interpolated with those of `lm` alone and those of `am` with a
    unigram, the mean of `lm` over all columns of the batch; as in k2 padding counts too, so that
    with am_only_scale the loss of an item depends on the others.

    Args:
        am: (B, T, V) scores of units in a frame, not normalised; finite in padding too. Half
            precision is computed in float32.
        lm: (B, U + 1, V) scores of units after u tokens; likewise.
        tokens: as of `speechattn.kernels.lattice.transducer.transducer`, as are lengths,
            token_lengths, delay_penalty and topology.
        lm_only_scale: of the log-probabilities of `lm` alone, 0 to 1.
        am_only_scale: of those of `am` and the unigram; both together at most 1.

    Returns:
        The loss (B,), infinite where no alignment is possible; the posteriors of tokens' arcs,
        (B, U, T + 1) for the regular topology, else (B, U, T), and of blanks', (B, U + 1, T). Only
        the loss has a gradient.

    Raises:
        ValueError: the shapes differ.
    """
    batch, frames, units = am.shape
    columns = lm.shape[1]
    check_shape("simple_transducer", "lm", lm, batch, columns, units)
    check_shape("simple_transducer", "tokens", tokens, batch, columns - 1)
    check_lengths("simple_transducer", lengths, token_lengths, batch)
    with torch.autocast(am.device.type, enabled=False):
        am, lm = (x.float() if x.dtype in HALF else x for x in (am, lm))
        tiny = torch.finfo(am.dtype).tiny
        am_peak, lm_peak = (x.detach().amax(-1, keepdim=True) for x in (am, lm))
        am_odds, lm_odds = (am - am_peak).exp(), (lm - lm_peak).exp()
        norm = (lm_odds @ am_odds.mT + tiny).log() + lm_peak + am_peak.mT  # (B, C, T)
        where = without_padding(tokens, token_lengths)[..., None]  # (B, U, 1)
        am_token = am.gather(2, where.mT.expand(-1, frames, -1)).mT  # (B, U, T)
        lm_token = lm[:, :-1].gather(2, where)  # (B, U, 1)
        am_blank, lm_blank = am[..., 0][:, None], lm[..., :1]
        scale = 1.0 - lm_only_scale - am_only_scale
        token = scale * (am_token + lm_token - norm[:, :-1])
        blank = scale * (am_blank + lm_blank - norm)
        if lm_only_scale or am_only_scale:
            lm_sum = lm_odds.sum(-1, keepdim=True)  # (B, C, 1)
        if lm_only_scale:
            lm_norm = lm_sum.log() + lm_peak
            token = token + lm_only_scale * (lm_token - lm_norm[:, :-1])
            blank = blank + lm_only_scale * (lm_blank - lm_norm)
        if am_only_scale:
            unigram = (lm_odds / lm_sum).mean((0, 1)) + tiny  # (V,)
            am_norm = (am_odds @ unigram).log()[:, None] + am_peak.mT  # (B, 1, T)
            unigram = unigram.log()
            token = token + am_only_scale * (am_token + unigram[where] - am_norm)
            blank = blank + am_only_scale * (am_blank + unigram[0] - am_norm)
        px, py = arcs(token, blank, lengths, delay_penalty, topology)
        total, px_occupied, py_occupied = occupied_lattice(px, py, lengths, token_lengths)
        return -total, px_occupied, py_occupied


def prune_ranges(
    px_grad: Tensor, py_grad: Tensor, lengths: Tensor, token_lengths: Tensor, width: int
) -> Tensor:
    """Select the columns of each frame that alignments go through, s in each frame.

    A frame gets the window of `width` columns with the largest posterior of blanks, less that of
    tokens into its first column (which would have to be there in the frame before). An item's last
    frame gets the window that ends with its text. Then windows that begin after that of a later
    frame are moved to the left; those that leave a gap to the next are moved to the right, as far
    as beginning with column 0 allows (2206.13236, 3.2).

    Args:
        px_grad: (B, U, T + 1) or (B, U, T) of `simple_transducer`.
        py_grad: (B, U + 1, T) likewise.
        lengths: (B,) frames.
        token_lengths: (B,).
        width: s, columns to keep; at least 2 for the regular topology, else 1. If there are fewer,
            all.

    Returns:
        (B, T, s) int64, s consecutive columns for each frame.

    Raises:
        ValueError: the width is too small.
    """
    columns, frames = py_grad.shape[1:]
    regular = px_grad.shape[2] > frames
    if width < 1 + regular:
        kind = "the regular topology" if regular else "one token a frame"
        raise ValueError(f"prune_ranges: width is at least {1 + regular} for {kind}, not {width}")
    width = min(width, columns)
    inside = py_grad.unfold(1, width, 1).sum(-1)  # (B, C - s + 1, T)
    into = pad(px_grad[..., :frames], (0, 0, 1, 0))[:, : inside.shape[1]]
    first = (inside - into).argmax(1)  # (B, T)
    t = torch.arange(frames, device=first.device)
    last = (token_lengths - width + 1).clamp(min=0)[:, None]
    first = _rising(torch.where(t < lengths[:, None] - 1, first, last))
    slope = (width - 1 if regular else 1) * t
    first = slope - _rising(slope - first).clamp(min=0)
    return first[..., None] + torch.arange(width, device=first.device)


def _rising(x: Tensor) -> Tensor:
    """Return the largest non-decreasing sequences not above x, (B, T)."""
    return x.flip(1).cummin(1).values.flip(1)


def prune(am: Tensor, lm: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Gather the joiner's inputs of the columns that are kept.

    Args:
        am: (B, T, D).
        lm: (B, U + 1, D), its width may differ.
        ranges: (B, T, s) from `prune_ranges`.

    Returns:
        Both (B, T, s, D); the first is a view.
    """
    batch, columns = lm.shape[:2]
    rows = ranges + columns * torch.arange(batch, device=ranges.device)[:, None, None]
    kept = lm.flatten(0, 1).index_select(0, rows.flatten())
    am = am[:, :, None].expand(*ranges.shape, am.shape[2])
    return am, kept.view(*ranges.shape, lm.shape[2])


def pruned_transducer(
    logits: Tensor,
    tokens: Tensor,
    ranges: Tensor,
    lengths: Tensor,
    token_lengths: Tensor,
    *,
    delay_penalty: float = 0.0,
    topology: Topology = "regular",
) -> Tensor:
    """Return minus the log of the sum over all alignments through the columns that are kept.

    Args:
        logits: (B, T, s, V) scores of the joiner, not normalised.
        tokens: as of `speechattn.kernels.lattice.transducer.transducer`, as are lengths,
            token_lengths, delay_penalty, topology, result and errors.
        ranges: (B, T, s) from `prune_ranges`.

    Returns:
        (B,), infinite where no alignment is left.
    """
    check_shape("pruned_transducer", "ranges", ranges, *logits.shape[:3])
    check_shape("pruned_transducer", "tokens", tokens, len(logits), tokens.shape[-1])
    check_lengths("pruned_transducer", lengths, token_lengths, len(logits))
    with torch.autocast(logits.device.type, enabled=False):
        batch, frames, width = ranges.shape
        followed = pad(without_padding(tokens, token_lengths), (0, 1))  # (B, C)
        units = followed.gather(1, ranges.flatten(1)).view_as(ranges)
        token, blank = emissions(logits, units, lengths, torch.full_like(lengths, width))
        nowhere = token.new_full((batch, frames, followed.shape[1]), _NEVER)
        token, blank = (nowhere.scatter(2, ranges, x).mT for x in (token, blank))  # (B, C, T)
        px, py = arcs(token[:, :-1], blank, lengths, delay_penalty, topology)
        return -lattice(px, py, lengths, token_lengths)
