"""3x3 convolutions by Winograd's minimal filtering (Lavin & Gray, 1509.09308), for inference.

Squares of 3x3 outputs come from 5x5 inputs by 25 products instead of 81. Everything is a matrix
product or a copy, and rounds about as a direct convolution does. It pays where channels are many
and pictures small: the transforms grow with the picture, the products saved with the channels too.
"""

import torch
from torch import Tensor, nn

OUT, KERNEL = 3, 3
TILE = OUT + KERNEL - 1
POINTS = (0.0, 1.0, -1.0, 2.0)  # and infinity

# From as many channels in and out on, it is faster than oneDNN's direct convolution.
WORTHWHILE = 256


def powers(count: int) -> Tensor:
    """Return the matrix (TILE, count) from a polynomial's coefficients to its values at POINTS."""
    rows = [[point**i for i in range(count)] for point in POINTS]
    return torch.tensor([*rows, [0.0] * (count - 1) + [1.0]], dtype=torch.float64)


def both_axes(matrix: Tensor) -> Tensor:
    """Return the transform (I, J) of one axis as one of both, flattened, (I * I, J * J)."""
    return torch.kron(matrix, matrix)


class WinogradConv(nn.Module):
    """A 3x3 convolution with stride 1 and a border of zeros, on (P, C, H, W) channels last.

    Args:
        weight: (O, C, 3, 3).
        bias: (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        out, channels = weight.shape[:2]
        spread = both_axes(powers(KERNEL))  # (25, 9)
        kernel = spread @ weight.double().permute(2, 3, 1, 0).reshape(KERNEL**2, -1)
        self.register_buffer("kernel", kernel.view(TILE**2, channels, out).float().contiguous())
        self.register_buffer("into", both_axes(torch.linalg.inv(powers(TILE)).T).float())
        self.register_buffer("back", both_axes(powers(OUT).T).float())
        self.register_buffer("bias", bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (P, C, H, W) to (P, O, H, W)."""
        frames, channels, height, width = x.shape
        rows, columns = -(-height // OUT), -(-width // OUT)
        padded = x.new_zeros(frames, rows * OUT + 2, columns * OUT + 2, channels)
        padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
        a, b, c, _ = padded.stride()
        tiles = padded.as_strided(
            (TILE, TILE, frames, rows, columns, channels), (b, c, a, OUT * b, OUT * c, 1)
        )
        tiles = self.into @ tiles.reshape(TILE**2, -1)  # (25, P * rows * columns * C)
        made = torch.bmm(tiles.view(TILE**2, -1, channels), self.kernel)  # (25, P * ..., O)
        y = self.back @ made.flatten(1)  # (9, P * rows * columns * O)
        y = y.view(OUT, OUT, frames, rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
        y = y.reshape(frames, rows * OUT, columns * OUT, -1)[:, :height, :width]
        # One tile a picture leaves the axes in another order in memory.
        return (y + self.bias).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
