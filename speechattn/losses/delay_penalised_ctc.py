"""CTC that rewards early tokens.

CTC does not care when tokens are emitted, and a causal model learns to wait. Delay-penalised CTC
(Yao et al., 2305.11539) adds to the arc on which a token is first emitted a score that falls with
its frame; blanks and further frames of the same token keep theirs. As in k2's
`ctc_loss(..., delay_penalty=)` the frame counts from the middle of the item, rounded down, so that
the penalties of tokens spread over the whole item cancel:

    first_scores[t] = -delay_penalty * (t - frames // 2)
"""

from typing import Literal

import torch
from torch import Tensor

from speechattn.errors import ConfigError
from speechattn.k2.ctc import ctc_losses
from speechattn.k2.library import library
from speechattn.kernels.lattice.ctc import ctc
from speechattn.losses.criterion import CtcCriterion
from speechattn.losses.ranges import check_range


def delay_penalised_ctc_loss(
    log_probs: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    delay_penalty: float = 0.0,
    *,
    modified: bool = False,
    zero_infinity: bool = False,
) -> Tensor:
    """Compute minus the log of the sum over all alignments, earlier ones weighing more.

    Without a penalty and unmodified it is `torch.nn.functional.ctc_loss(reduction="none")`.

    Args:
        log_probs: (B, T, V), blank at 0; lengths (B,), tokens (B, U), token_lengths (B,).
        delay_penalty: for each frame that a token is later, 0 or more; papers use 0.001 to 0.1.
        modified: equal tokens need no blank between them, as in k2's `ctc_topo(modified=True)`.
        zero_infinity: 0 rather than infinity for an item too short for its text. Its gradient is 0
            either way.

    Returns:
        (B,). With a penalty it is not the log of a probability, and may be below 0.
    """
    first_scores = None
    if delay_penalty:
        frames = torch.arange(log_probs.shape[1], device=lengths.device)
        first_scores = -delay_penalty * (frames - lengths[:, None] // 2).double()
    loss = ctc(
        log_probs, lengths, tokens, token_lengths, first_scores=first_scores, modified=modified
    )
    return loss.masked_fill(loss.isposinf(), 0.0) if zero_infinity else loss


class DelayPenalisedCTC(CtcCriterion):
    """CTC for a `JointLoss` whose model should emit early.

    Args:
        delay_penalty: see `delay_penalised_ctc_loss`; more makes earlier tokens, and more errors.
        modified: equal tokens need no blank between them; decode likewise.
        backend: `native`, or `k2` where that is installed: the same numbers.

    Raises:
        ConfigError: the penalty is negative, or k2 is not installed.
    """

    def __init__(
        self,
        delay_penalty: float = 0.01,
        modified: bool = False,
        backend: Literal["native", "k2"] = "native",
    ):
        super().__init__()
        if backend not in ("native", "k2"):
            raise ConfigError(f"backend has to be native or k2, got {backend!r}")
        if backend == "k2":
            library()
        check_range("delay_penalty", delay_penalty)
        self.delay_penalty, self.modified, self.backend = delay_penalty, modified, backend

    def losses(
        self, log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> Tensor:
        compute = ctc_losses if self.backend == "k2" else delay_penalised_ctc_loss
        texts = lengths, tokens, token_lengths
        return compute(log_probs, *texts, delay_penalty=self.delay_penalty, modified=self.modified)
