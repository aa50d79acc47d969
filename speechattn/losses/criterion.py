"""What the CTC losses of a `JointLoss` have in common."""

from torch import Tensor, nn


class CtcCriterion(nn.Module):
    """A loss of each item of a batch, and its mean."""

    def losses(
        self, log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> Tensor:
        """Compute the loss of each item (B,), infinite for those too short for their text.

        Args:
            log_probs: (B, T, V), blank at 0; lengths (B,), tokens (B, U), token_lengths (B,).
        """
        raise NotImplementedError

    def forward(
        self, log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> Tensor:
        """Compute the mean over the batch of `losses`; items too short for their text count 0."""
        return mean(self.losses(log_probs, lengths, tokens, token_lengths))


def mean(losses: Tensor) -> Tensor:
    """Average losses (B,), of which infinite ones count 0."""
    return losses.masked_fill(losses.isposinf(), 0.0).sum() / len(losses)
