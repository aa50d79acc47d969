"""The states that the alignments of `speechattn.kernels.lattice.ctc` visit, and sums over them.

The S = 2U + 1 states are kept as two planes of C = U + 1 columns: blank after u tokens in column u
of the first, the u-th token (from 1) in column u of the second, whose column 0 is never reached.
So a frame is

    blank[u] <- blank[u] + token[u]              token[u + 1] <- token[u + 1] + blank[u] + token[u]

where the last term, a skipped blank, is missing between equal tokens; and what the token gets from
other states is what the blank has just got, unless it is missing. So a frame is two log-sum-exp of
C columns.

Legend: see `speechattn.kernels`; R sequences of a recursion: the B items, and for the gradient the
B items from their ends as well, frames and states reversed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from speechattn.masks import padding_mask

_NEVER = -float("inf")


@dataclass
class Lattice:
    """States of a ragged batch and the scores of being in them.

    Attributes:
        scores: (T, 2, R, C) float64, of a state in a frame; finite and meaningless in the padding.
        skips: (R, C) whether a token may follow the one before it at once.
        start: (2, R, C) 0 where a sequence may start, else minus infinity.
        constant: (B,) float64, added to the score of every alignment.
        lengths: (B,) frames.
        tokens: (B, U), 0 beyond an item's tokens.
        token_lengths: (B,).
    """

    scores: Tensor
    skips: Tensor
    start: Tensor
    constant: Tensor
    lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor


def build(
    log_probs: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    first_scores: Tensor | None,
    repeat_score: float,
    modified: bool,
    reverse: bool,
) -> Lattice:
    """Build the lattice of a batch; see `ctc` for the arguments.

    With `reverse` the R sequences are the items and then the items reversed.
    """
    device = log_probs.device
    batch, frames, _ = log_probs.shape
    tokens = tokens.masked_fill(~padding_mask(token_lengths, tokens.shape[1]), 0)
    columns = tokens.shape[1] + 1
    sequences = 2 * batch if reverse else batch
    # Padding must be neither inf nor NaN: -inf could not stop it from passing to the next item.
    hidden = ~padding_mask(lengths, frames)[..., None]  # (B, T, 1)
    blank = log_probs[..., :1].masked_fill(hidden, 0.0).double()
    where = tokens[:, None].expand(-1, frames, -1)
    token = log_probs.gather(2, where).masked_fill_(hidden, 0.0).double()  # (B, T, U)
    constant = -repeat_score * token_lengths.double()
    if repeat_score:
        token += repeat_score
    u = torch.arange(columns, device=device)
    if first_scores is not None and frames > 0:
        first_scores = first_scores.double()
        rise = first_scores.diff(dim=1, append=first_scores[:, -1:])
        rise = rise.masked_fill_(~padding_mask(lengths - 1, frames), 0.0)[..., None]
        waiting = (token_lengths[:, None, None] - u).clamp(min=0)  # (B, 1, C) not begun
        blank = torch.addcmul(blank, rise, waiting)  # (B, T, C)
        token.addcmul_(rise, waiting[..., 1:])
        constant += token_lengths * first_scores[:, 0].where(lengths > 0, 0.0)
    scores = blank.new_empty(frames, 2, sequences, columns)
    scores[:, 1, :, 0] = _NEVER
    scores[:, 0, :batch] = blank.transpose(0, 1)
    scores[:, 1, :batch, 1:] = token.transpose(0, 1)
    skips = torch.ones(batch, columns, dtype=torch.bool, device=device)
    if not modified:
        skips[:, 2:] = tokens[:, 1:] != tokens[:, :-1]
    spoken = (token_lengths > 0)[:, None]
    start = torch.stack([(u == 0).expand_as(skips), (u == 1) & spoken])  # (2, B, C)
    if reverse:
        rows = _from_the_end(lengths, frames) + frames * torch.arange(batch, device=device)
        for plane, first, x in ((0, 0, blank), (1, 1, token)):
            x = x.flatten(0, 1).index_select(0, rows.flatten()).view(frames, batch, x.shape[2])
            scores[:, plane, batch:, first:] = x.flip(-1)
        skips = torch.cat([skips, torch.cat([skips[:, :2], skips[:, 2:].flip(-1)], 1)])
        last = columns - 1 - token_lengths[:, None]
        start = torch.cat([start, torch.stack([u == last, (u == last + 1) & spoken])], 1)
    start = scores.new_zeros(start.shape).masked_fill_(~start, _NEVER)
    return Lattice(scores, skips, start, constant, lengths, tokens, token_lengths)


def _from_the_end(lengths: Tensor, frames: int) -> Tensor:
    """Return (T, B), the t-th frame from an item's end, or its first if there is none."""
    t = torch.arange(frames, device=lengths.device)[:, None]
    return (lengths - 1 - t).clamp(min=0)


def recursion(lattice: Lattice) -> Tensor:
    """Return the log of the sum over all paths from a sequence's start to a state in a frame.

    Returns:
        (T, 2, R, C), each without the score of that state in that frame; column 0 of the second
        plane is meaningless.
    """
    # All sequences are side by side in a row: what passes from one to the next ends up in column 0
    # of the tokens, whose score is minus infinity.
    scores, half = lattice.scores.flatten(1), lattice.skips.numel()
    reached = torch.empty_like(scores)
    if len(reached) > 0:
        reached[0] = lattice.start.flatten()
        reached[1:, half] = _NEVER
        at = reached[0] + scores[0]
        blank, token, following = at[:half], at[half:], at[half + 1 :]
        # Where the next token may not follow at once, it takes what the blank had.
        skips = torch.nn.functional.pad(lattice.skips.flatten()[1:], (0, 1))
        room = torch.empty_like(blank)
        sources = room[:-1]
        steps = (scores, reached, reached[:, :half], reached[:, half + 1 :])
        # The loop takes all the time: few calls per frame, into allocated memory.
        for score, now, blanks, tokens in zip(*(x[1:].unbind(0) for x in steps), strict=True):
            torch.logaddexp(blank, token, out=blanks)
            torch.where(skips, blanks, blank, out=room)
            torch.logaddexp(following, sources, out=tokens)
            torch.add(now, score, out=at)
    return reached.view(lattice.scores.shape)


def log_total(lattice: Lattice, reached: Tensor) -> Tensor:
    """Return the log of the sum over all alignments (B,), without the lattice's constant.

    `reached` is of 2 planes, or of more, all after the second with the scores of the second.
    """
    lengths, ends = lattice.lengths, lattice.token_lengths
    nothing = lattice.constant.new_zeros(len(ends)).masked_fill_(ends > 0, _NEVER)
    if reached.shape[0] == 0:
        return nothing
    items = torch.arange(len(ends), device=ends.device)
    index = ((lengths - 1).clamp(min=0), slice(None), items, ends)
    scores = lattice.scores[index]  # (B, 2)
    if reached.shape[1] > 2:
        scores = torch.cat([scores[:, :1], scores[:, 1:].expand(-1, reached.shape[1] - 1)], 1)
    return torch.where(lengths > 0, (reached[index] + scores).logsumexp(1), nothing)


def posteriors(lattice: Lattice, reached: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Return the posteriors of states in each frame, given the text.

    Args:
        lattice: with the reversed sequences.
        reached: its `recursion`; overwritten.
        total: its `log_total`.

    Returns:
        Of blank (B, T), and of each token (B, T, U); zero beyond an item's frames and where no
        alignment is possible.
    """
    batch, frames = len(total), reached.shape[0]
    hidden = ~padding_mask(lattice.lengths, frames) | (total == _NEVER)[:, None]
    scale = (-total[:, None]).masked_fill(hidden, _NEVER).t()[..., None]  # (T, B, 1)
    sequence = torch.arange(batch, 2 * batch, device=total.device)
    found = []
    for plane, first in ((0, 0), (1, 1)):
        rows = (2 * _from_the_end(lattice.lengths, frames) + plane) * 2 * batch + sequence
        # index_select copies rows, several times as fast as indices do.
        after = reached.flatten(0, 2).index_select(0, rows.flatten())[:, first:].flip(-1)
        both = reached[:, plane, :batch, first:].add_(lattice.scores[:, plane, :batch, first:])
        found.append(both.add_(scale).add_(after.view_as(both)).exp_())
    return found[0].sum(-1).t(), found[1].transpose(0, 1)


def log_prob_gradient(
    tokens: Tensor, blank: Tensor, token: Tensor, gradient: Tensor, units: int
) -> Tensor:
    """Return the gradient (B, T, V) of log probabilities from that of the losses, (B,).

    Args:
        tokens: (B, U), 0 in the padding, which is blank with a posterior of 0.
        blank, token: (B, T) and (B, T, U), see `posteriors`.
        gradient: (B,).
        units: V.
    """
    scale = -gradient[:, None].to(blank.dtype)  # (B, 1)
    result = blank.new_zeros(*blank.shape, units)
    result.scatter_add_(2, tokens[:, None].expand_as(token), token * scale[..., None])
    result[..., 0] += blank * scale
    return result
