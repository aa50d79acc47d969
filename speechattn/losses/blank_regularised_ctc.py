"""CTC that keeps its tokens short, so that more frames are blank and a transducer may skip them.

Blank-regularised CTC (Yang et al., 2305.11558) constrains the self-loops of tokens in CTC's
topology; those of blank stay free:

    soft: each further frame of a token costs `repeat_penalty`, added to the log of the path;
    hard: a token has at most `max_repeats` frames after its first.

The paper uses one of the two; here both may be on, and with neither it is plain CTC. The penalty is
a score of an arc and is not normalised: with it the loss is no longer the log of a probability.
"""

from functools import partial

from torch import Tensor

from speechattn.kernels.lattice.ctc import ctc
from speechattn.kernels.lattice.max_duration_ctc import max_duration_ctc
from speechattn.losses.criterion import CtcCriterion
from speechattn.losses.ranges import check_range


def blank_regularised_ctc_loss(
    log_probs: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    *,
    repeat_penalty: float = 0.0,
    max_repeats: int | None = None,
    modified: bool = False,
    zero_infinity: bool = False,
) -> Tensor:
    """Compute minus the log of the sum over all alignments, short tokens weighing more.

    Unregularised and unmodified it is `torch.nn.functional.ctc_loss(reduction="none")`.

    Args:
        log_probs: (B, T, V), blank at 0; lengths (B,), tokens (B, U), token_lengths (B,).
        repeat_penalty: for each further frame of a token, 0 or more.
        max_repeats: further frames of a token at most; None for any number.
        modified: equal tokens need no blank between them, as in k2's `ctc_topo(modified=True)`.
        zero_infinity: 0 rather than infinity for an item too short for its text. Its gradient is 0
            either way.

    Returns:
        (B,).
    """
    compute = ctc
    if max_repeats is not None:
        compute = partial(max_duration_ctc, max_repeats=max_repeats)
    score = -float(repeat_penalty)
    loss = compute(log_probs, lengths, tokens, token_lengths, repeat_score=score, modified=modified)
    return loss.masked_fill(loss.isposinf(), 0.0) if zero_infinity else loss


class BlankRegularisedCTC(CtcCriterion):
    """CTC for a `JointLoss` whose model skips blank frames with a `FrameReducer`.

    Args:
        repeat_penalty: see `blank_regularised_ctc_loss`; more makes shorter tokens.
        max_repeats: likewise; fewer make shorter tokens, 0 makes tokens of one frame.
        modified: equal tokens need no blank between them; decode likewise.
    """

    def __init__(
        self, repeat_penalty: float = 0.0, max_repeats: int | None = None, modified: bool = False
    ):
        super().__init__()
        check_range("repeat_penalty", repeat_penalty)
        if max_repeats is not None:
            check_range("max_repeats", max_repeats)
        self.repeat_penalty, self.max_repeats, self.modified = repeat_penalty, max_repeats, modified

    def losses(
        self, log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> Tensor:
        return blank_regularised_ctc_loss(
            log_probs,
            lengths,
            tokens,
            token_lengths,
            repeat_penalty=self.repeat_penalty,
            max_repeats=self.max_repeats,
            modified=self.modified,
        )
