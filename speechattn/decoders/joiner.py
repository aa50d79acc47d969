"""The joiner of a transducer: a frame and a prediction to logits."""

from torch import Tensor, nn


class Joiner(nn.Module):
    """Logits of the next unit from a frame and a prediction: a tanh between linear layers.

    Graves et al. 2013, "Speech Recognition with Deep Recurrent Neural Networks" (1303.5778).

    Args:
        encoder_size: width of a frame.
        predictor_size: width of a prediction.
        width: D, where they are added.
        vocab_size: V.
    """

    def __init__(self, encoder_size: int, predictor_size: int, width: int, vocab_size: int):
        super().__init__()
        self.encoder_projection = nn.Linear(encoder_size, width)
        self.predictor_projection = nn.Linear(predictor_size, width)
        self.output = nn.Linear(width, vocab_size)

    def forward(self, frames: Tensor, predicted: Tensor, project: bool = True) -> Tensor:
        """Compute the logits of pairs.

        Args:
            frames: (..., encoder_size), any leading axes that go together with those of
                `predicted`: (B, T, 1, ...) and (B, 1, U + 1, ...) make all pairs.
            predicted: (..., predictor_size).
            project: apply the projections; False where both have been through them already.

        Returns:
            (..., V).
        """
        if project:
            frames = self.encoder_projection(frames)
            predicted = self.predictor_projection(predicted)
        return self.output((frames + predicted).tanh())
