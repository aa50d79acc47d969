"""CTC with a maximum duration of tokens.

The alignments of `ctc` in which no token goes on for more than `max_repeats` frames after its first
(2305.11558, the hard constraint). A token is then a chain of states, one for each of its frames;
blank or the next token may follow any of them, but only the first is entered from outside.

Legend: see `speechattn.kernels`; P = max_repeats + 2 planes of states, as in `ctc_lattice`: blank,
then a token's frames in order.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from speechattn.kernels.lattice.ctc_lattice import Lattice, build, log_prob_gradient, log_total
from speechattn.kernels.precision import HALF
from speechattn.masks import padding_mask

_NEVER = -float("inf")


def max_duration_ctc(
    log_probs: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    *,
    max_repeats: int,
    repeat_score: float = 0.0,
    modified: bool = False,
) -> Tensor:
    """Return minus the log of the sum over all alignments whose tokens are short enough.

    Two loops over the frames with more states than in `ctc`, so it takes a few times as long; needs
    two tensors of (T, P, B, C) float64.

    Args:
        log_probs: as in `ctc`, as are lengths, tokens and token_lengths.
        max_repeats: further frames of a token after its first; 0 for tokens of one frame.
        repeat_score: for each of them.
        modified: equal tokens may follow each other without a blank between them: more of them in a
            row are several tokens, or one, or both in all ways.

    Returns:
        (B,), infinite and with a gradient of zero where no alignment is possible.
    """
    if max_repeats < 0:
        raise ValueError(f"max_repeats is 0 or more, not {max_repeats}")
    if log_probs.dtype in HALF:
        log_probs = log_probs.float()
    with torch.autocast(log_probs.device.type, enabled=False):
        return _MaxDurationCtc.apply(
            log_probs, lengths, tokens, token_lengths, max_repeats, repeat_score, modified
        )


class _MaxDurationCtc(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, log_probs, lengths, tokens, token_lengths, max_repeats, repeat_score, modified
    ) -> Tensor:
        texts = lengths, tokens, token_lengths
        lattice = build(log_probs, *texts, None, repeat_score, modified, reverse=False)
        # No token lasts longer than all frames: more planes would never be reached.
        planes = min(max_repeats, max(log_probs.shape[1] - 1, 0)) + 2
        before = _before(lattice, planes)
        total = log_total(lattice, before)
        if ctx.needs_input_grad[0]:
            blank, token = _posteriors(lattice, before, total)
            ctx.save_for_backward(lattice.tokens, blank, token)
            ctx.like = log_probs.dtype, log_probs.shape[2]
        return -(total + lattice.constant).to(log_probs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        (tokens, blank, token), (dtype, units) = ctx.saved_tensors, ctx.like
        result = log_prob_gradient(tokens, blank, token, gradient, units)
        return result.to(dtype), None, None, None, None, None, None


def _planes(scores: Tensor, planes: int) -> Tensor:
    """Expand scores of blank and token (..., 2, B, C) to all planes, (..., P, B, C)."""
    token = scores[..., 1:, :, :].expand(*scores.shape[:-3], planes - 1, *scores.shape[-2:])
    return torch.cat([scores[..., :1, :, :], token], -3)


def _follows(lattice: Lattice) -> Tensor:
    """Return whether the next token may come right after a column's, (B, C)."""
    return torch.nn.functional.pad(lattice.skips[:, 1:], (0, 1))


def _before(lattice: Lattice, planes: int) -> Tensor:
    """Return the log of the sum over all paths to a state, without its own score, (T, P, B, C)."""
    frames, _, batch, columns = lattice.scores.shape
    follows = _follows(lattice)
    reached = lattice.scores.new_full((frames, planes, batch, columns), _NEVER)
    if frames:
        reached[0, :2] = lattice.start
    for t in range(1, frames):
        at = reached[t - 1] + _planes(lattice.scores[t - 1], planes)
        now = reached[t]
        torch.logaddexp(at[0], at[1:].logsumexp(0), out=now[0])
        now[1, :, 1:] = torch.where(follows, now[0], at[0])[:, :-1]
        now[2:] = at[1:-1]
    return reached


def _posteriors(lattice: Lattice, before: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Return posteriors as `ctc_lattice.posteriors` does."""
    frames, planes, batch, columns = before.shape
    follows = _follows(lattice)
    hidden = ~padding_mask(lattice.lengths, frames) | (total == _NEVER)[:, None]
    scale = (-total[:, None]).masked_fill(hidden, _NEVER)  # (B, T)
    column = torch.arange(columns, device=total.device)
    end = before.new_zeros(planes, batch, columns)
    end.masked_fill_(column != lattice.token_lengths[:, None], _NEVER)
    last = (lattice.lengths - 1)[:, None]
    blank = before.new_zeros(batch, frames)
    token = before.new_zeros(batch, frames, columns - 1)
    after, goes_on = end, None  # log of the sum over all paths from a state to the end
    for t in range(frames - 1, -1, -1):
        if goes_on is not None:
            after = torch.empty_like(end)
            first = torch.nn.functional.pad(goes_on[1, :, 1:], (0, 1), value=_NEVER)
            torch.logaddexp(goes_on[0], first, out=after[0])
            ends = torch.where(follows, after[0], goes_on[0])
            torch.logaddexp(ends, goes_on[2:], out=after[1:-1])
            after[-1] = ends
            after = torch.where(t < last, after, end)
        goes_on = after + _planes(lattice.scores[t], planes)
        posterior = (before[t] + goes_on + scale[:, t, None]).exp_()  # (P, B, C)
        blank[:, t] = posterior[0].sum(-1)
        token[:, t] = posterior[1:, :, 1:].sum(0)
    return blank, token
