"""What every frontend is."""

from torch import Tensor, nn


class Frontend(nn.Module):
    """Turns a raw modality into one feature vector a frame.

    `forward(x, lengths) -> (features (B, T, output_size), lengths (B,))`. Frames beyond an item's
    length are zero, and what an item gives does not depend on the batch it came in.
    """

    output_size: int

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError
