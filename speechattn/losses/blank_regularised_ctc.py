"""CTC that keeps its tokens short, so that more frames are blank.

What a transducer may skip is what CTC says is blank, and CTC has no reason to say so where it can
go on with a token. Blank-regularised CTC (Yang et al., 2305.11558) constrains the self-loops of the
tokens in the topology of CTC, blank's stay free:

    soft: each further frame of a token costs `repeat_penalty`, added to the log of the path;
    hard: a token has at most `max_repeats` frames after its first.

The paper constrains with one of the two; here both may be on, and neither is plain CTC. Its penalty
is a score of the arc: as such it is neither divided by the temperature of anything nor normalised,
so with it the loss is the log of no probability.
"""

from torch import Tensor, nn

from speechattn.errors import ConfigError
from speechattn.kernels.lattice.ctc import ctc
from speechattn.kernels.lattice.max_duration_ctc import max_duration_ctc


def blank_regularised_ctc_loss(
    log_probs: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    repeat_penalty: float = 0.0,
    max_repeats: int | None = None,
    modified: bool = False,
    zero_infinity: bool = False,
) -> Tensor:
    """Minus the log of the sum over all alignments, those of short tokens weighing more.

    Unregularised and unmodified it is `torch.nn.functional.ctc_loss(reduction="none")`.

    Args:
        log_probs: (B, T, V), blank at 0.
        lengths: (B,) frames.
        tokens: (B, U).
        token_lengths: (B,).
        repeat_penalty: for each further frame of a token, 0 or more.
        max_repeats: further frames of a token at most; None for any number.
        modified: equal tokens need no blank between them, as in k2's `ctc_topo(modified=True)`.
        zero_infinity: 0 rather than infinity for an item too short for its text. Its gradient is 0
            either way.

    Returns:
        (B,).
    """
    score = -float(repeat_penalty)
    if max_repeats is None:
        loss = ctc(log_probs, lengths, tokens, token_lengths, repeat_score=score, modified=modified)
    else:
        loss = max_duration_ctc(
            log_probs,
            lengths,
            tokens,
            token_lengths,
            max_repeats=max_repeats,
            repeat_score=score,
            modified=modified,
        )
    return loss.masked_fill(loss.isposinf(), 0.0) if zero_infinity else loss


class BlankRegularisedCTC(nn.Module):
    """The CTC of a `JointLoss` that is to leave a `FrameReducer` few frames.

    Args:
        repeat_penalty: see `blank_regularised_ctc_loss`; more makes shorter tokens.
        max_repeats: likewise; fewer make shorter tokens, 0 makes tokens of one frame.
        modified: equal tokens need no blank between them; decode likewise.
    """

    def __init__(
        self, repeat_penalty: float = 0.0, max_repeats: int | None = None, modified: bool = False
    ):
        super().__init__()
        if not 0.0 <= repeat_penalty < float("inf"):
            raise ConfigError(f"repeat_penalty has to be 0 or more, got {repeat_penalty!r}")
        if max_repeats is not None and max_repeats < 0:
            raise ConfigError(f"max_repeats has to be 0 or more, got {max_repeats!r}")
        self.repeat_penalty = repeat_penalty
        self.max_repeats = max_repeats
        self.modified = modified

    def forward(
        self, log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> Tensor:
        """A scalar, averaged over the batch; items too short for their text count 0.

        Args:
            log_probs: (B, T, V), blank at 0.
            lengths: (B,).
            tokens: (B, U).
            token_lengths: (B,).
        """
        loss = blank_regularised_ctc_loss(
            log_probs,
            lengths,
            tokens,
            token_lengths,
            self.repeat_penalty,
            self.max_repeats,
            self.modified,
            zero_infinity=True,
        )
        return loss.sum() / len(loss)
