"""The score of a sequence from what a decoder or a language model predicts after each token."""

from collections.abc import Callable

import torch
from torch import Tensor

from speechattn.masks import padding_mask

# Logits in memory at once.
MAX_LOGITS = 2**26


def next_tokens(tokens: Tensor, lengths: Tensor, eos: int) -> Tensor:
    """Return the token after each of a sequence, <eos> after the last.

    Args:
        tokens: (N, U) int64, starting with <sos>; any value beyond a length.
        lengths: (N,) int64, <sos> counted, each at least 1.
        eos: id of <eos>.

    Returns:
        (N, U) int64; what stands beyond a length means nothing.
    """
    after = torch.cat([tokens[:, 1:], tokens[:, :1]], 1)
    return after.scatter(1, lengths[:, None] - 1, eos)


def sequence_log_probs(
    predicted: Tensor,
    targets: Tensor,
    lengths: Tensor,
    output: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Compute the log-probability of whole sequences.

    Args:
        predicted: logits (N, U, V), or the input of `output`, (N, U, D).
        targets: (N, U) int64.
        lengths: (N,) int64.
        output: (tokens, D) to logits (tokens, V); it gets real tokens only, and not all at once,
            since logits are by far the largest.

    Returns:
        (N,) float64, natural logs.
    """
    n, u = targets.shape
    real = padding_mask(lengths, u).flatten().nonzero()[:, 0]
    predicted, targets = predicted.flatten(0, 1), targets.flatten()
    vocab_size = getattr(output, "out_features", predicted.size(-1))
    total = torch.zeros(n, dtype=torch.float64, device=targets.device)
    for at in real.split(max(1, MAX_LOGITS // vocab_size)):
        logits = predicted[at]
        logits = (logits if output is None else output(logits)).float()
        true = logits.gather(1, targets[at, None])[:, 0] - logits.logsumexp(-1)
        total = total.index_add(0, at // u, true.double())
    return total
