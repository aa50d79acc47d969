"""Delay-penalised CTC by k2, whose definition it is. Legend: see `speechattn.kernels`."""

import torch
from torch import Tensor

from speechattn.k2.library import library


def ctc_losses(
    log_probs: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    *,
    delay_penalty: float = 0.0,
    modified: bool = False,
    beam: float = 1e9,
) -> Tensor:
    """Compute `speechattn.losses.delay_penalised_ctc_loss` by `k2.ctc_loss`.

    Args:
        log_probs: (B, T, V), blank at 0.
        lengths: (B,) int64.
        tokens: (B, U).
        token_lengths: (B,).
        delay_penalty: for each frame that a token is later.
        modified: equal tokens need no blank between them.
        beam: paths this much worse than the best are pruned; k2's default is 10.

    Returns:
        (B,), infinite for an item too short for its text.
    """
    k2 = library()
    order = lengths.argsort(descending=True)  # k2 wants the longest first
    segments = torch.zeros(len(order), 3, dtype=torch.int32)
    segments[:, 0], segments[:, 2] = order.cpu(), lengths[order].cpu()
    texts = [tokens[i, : int(token_lengths[i])].tolist() for i in order.tolist()]
    graphs = k2.ctc_graph(texts, modified=modified, device=log_probs.device)
    dense = k2.DenseFsaVec(log_probs.float(), segments)
    losses = k2.ctc_loss(graphs, dense, beam, delay_penalty, reduction="none")
    return losses[order.argsort()]
