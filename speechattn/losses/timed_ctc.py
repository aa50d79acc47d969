"""CTC that may emit a token only near its time.

Plain CTC constrains the order of tokens, not their times: a model that attends to the whole clip
may emit its first words in the first frame. Where the times of words are known, the paths of CTC
are kept near them: time-constrained CTC (Sak et al. 2015, "Acoustic modelling with CD-CTC-SMBR LSTM
RNNs"), alignment-restricted training (Mahadeokar et al., 2011.03072).
"""

import torch
from torch import Tensor, nn

from speechattn.masks import padding_mask

# The log probability of a unit that is not allowed; minus infinity has no gradient.
_NEVER = -1e6


def timed_ctc_loss(
    log_probs: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    times: Tensor,
    slack: float,
) -> Tensor:
    """Compute minus the log probability of all paths that emit each token near its time.

    A token that occurs twice may be emitted near either time at both places; otherwise it is exact.
    The frames' probabilities are normalised over the units allowed, which torch's CTC needs for its
    gradient to be right, and the loss is corrected for it.

    Args:
        log_probs: (B, T, V), normalised, blank at 0; lengths (B,), tokens (B, U), token_lengths
            (B,).
        times: (B, U, 2) start and end of each token, in frames, not rounded; from minus to plus
            infinity where unknown.
        slack: frames before the start and after the end in which it may be emitted too.

    Returns:
        A scalar, averaged over the batch; an item too short for its text, or with no frame near one
        of its tokens, counts 0.
    """
    frames, units = log_probs.shape[1:]
    centre = torch.arange(frames, device=log_probs.device) + 0.5
    first, last = times[..., :1] - slack, times[..., 1:] + slack
    near = (centre >= first) & (centre <= last)  # (B, U, T)
    near &= padding_mask(token_lengths, tokens.shape[1])[..., None]
    index = tokens[:, :, None].expand_as(near)
    allowed = log_probs.new_zeros(len(tokens), units, frames)
    allowed = allowed.scatter_add_(1, index, near.to(log_probs.dtype)).transpose(1, 2) > 0
    allowed[..., 0] = True
    masked = log_probs.float().masked_fill(~allowed, _NEVER)
    mass = masked.logsumexp(-1)  # (B, T)
    masked = (masked - mass[..., None]).transpose(0, 1)
    texts = tokens, lengths, token_lengths
    loss = nn.functional.ctc_loss(masked, *texts, reduction="none", zero_infinity=True)
    rest = -(mass * padding_mask(lengths, frames)).sum(1)
    # Too short for its text: zero_infinity gives 0. No frame near a token: its path has _NEVER.
    possible = ((loss > 0) & (loss < -_NEVER / 2)).detach()
    return torch.where(possible, loss + rest, loss * 0.0).sum() / len(loss)
