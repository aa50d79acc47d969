"""Sinusoids of the distance between two frames (Transformer-XL, 1901.02860, appendix B)."""

import math

import torch
from torch import Tensor, nn

from speechattn.dropout import Dropout


def relative_positions(frames: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the sinusoids of every distance i - j between a query i and a key j.

    Args:
        frames: T, frames in the sequence, at least 1.
        width: D, even.
        device: where to build them.

    Returns:
        (2T-1, D) float32; row r is the distance i - j = T-1-r. Sines in the even columns, cosines
        in the odd ones, as in ESPnet's "latest".
    """
    distance = torch.arange(frames - 1, -frames, -1.0, device=device)  # (2T-1,)
    rate = torch.exp(torch.arange(0, width, 2.0, device=device) * -(math.log(10000.0) / width))
    angle = distance[:, None] * rate  # (2T-1, D/2)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)  # (2T-1, D)


class RelativePositions(nn.Module):
    """Scaling of the input by sqrt(D), and the sinusoids of its length.

    Equal to ESPnet's `RelPositionalEncoding` (scale: 1706.03762, section 3.4). The table is built
    once and grows on demand.

    Args:
        width: D, even.
        dropout: of the scaled input and of the sinusoids.
    """

    def __init__(self, width: int, dropout: float = 0.1):
        super().__init__()
        if width % 2:
            raise ValueError(f"RelativePositions: width must be even, not {width}")
        self.width = width
        self.dropout = Dropout(dropout)
        # No buffer: one that changes its size would upset what copies buffers between processes.
        self._table: Tensor | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x * sqrt(D), (B, T, D), and the sinusoids (2T-1, D) in the dtype of x."""
        positions = self._lookup(x.shape[1], x.device).to(x.dtype)
        return self.dropout(x * math.sqrt(self.width)), self.dropout(positions)

    def _lookup(self, frames: int, device: torch.device) -> Tensor:
        table = self._table
        if table is None or table.shape[0] < 2 * frames - 1 or table.device != device:
            # A table made under inference mode (a validation pass, say) could never take part in
            # a later backward pass, so it is built outside of it.
            with torch.inference_mode(False), torch.no_grad():
                table = relative_positions(max(frames, 512), self.width, device)
            self._table = table
        centre = table.shape[0] // 2
        return table[centre - frames + 1 : centre + frames]
