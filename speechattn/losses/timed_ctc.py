"""CTC that may emit a token only near where it was said.

CTC alone asks for the order of tokens, not for their times: a model that attends to whole clips may
say all first words in the first frame. Where a corpus knows when its words were said, the paths of
CTC are kept near that: time-constrained CTC (Sak et al. 2015, "Acoustic modelling with CD-CTC-SMBR
LSTM RNNs"), alignment-restricted training (Mahadeokar et al., 2011.03072).
"""

import torch
from torch import Tensor, nn

# Stands for the log probability of what may not be; minus infinity has no gradient.
_NEVER = -1e6


def timed_ctc_loss(
    log_probs: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    times: Tensor,
    slack: float,
) -> Tensor:
    """Minus the log probability of all paths that emit each token near its time.

    A token that is said twice may be emitted near either time at both places in the order. Exact
    else: the frames' probabilities are normalised over what is allowed, which torch's CTC needs for
    its gradient to be right, and what that adds is taken off again.

    Args:
        log_probs: (B, T, V), normalised, blank at 0.
        lengths: (B,) frames.
        tokens: (B, U).
        token_lengths: (B,).
        times: (B, U, 2) first frame and the one after the last in which a token was said, in
            frames but not rounded; from minus to plus infinity where that is not known.
        slack: frames before and after in which it may be emitted too.

    Returns:
        A scalar, averaged over the batch; an item too short for its text, or that has no frame near
        one of its tokens, counts 0.
    """
    frames, units = log_probs.shape[1:]
    centre = torch.arange(frames, device=log_probs.device) + 0.5
    first, last = times[..., :1] - slack, times[..., 1:] + slack
    near = (centre >= first) & (centre <= last)  # (B, U, T)
    near &= (
        torch.arange(tokens.shape[1], device=tokens.device)[:, None] < token_lengths[:, None, None]
    )
    where = tokens[:, :, None].expand_as(near)
    allowed = log_probs.new_zeros(len(tokens), units, frames)
    allowed = allowed.scatter_add_(1, where, near.to(log_probs.dtype)).transpose(1, 2) > 0
    allowed[..., 0] = True
    masked = log_probs.float().masked_fill(~allowed, _NEVER)
    mass = masked.logsumexp(-1)  # (B, T)
    loss = nn.functional.ctc_loss(
        (masked - mass[..., None]).transpose(0, 1),
        tokens,
        lengths,
        token_lengths,
        reduction="none",
        zero_infinity=True,
    )
    inside = torch.arange(frames, device=lengths.device) < lengths[:, None]
    rest = -(mass * inside).sum(1)
    # Too short for its text: zero_infinity says 0. No frame near a word: it went where none may go.
    possible = ((loss > 0) & (loss < -_NEVER / 2)).detach()
    return torch.where(possible, loss + rest, loss * 0.0).sum() / len(loss)
