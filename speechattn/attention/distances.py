"""The projection of the sinusoids of distances, at half the products.

Sines are odd and cosines even, so that a distance and its opposite have their projections in
common, but for a sign:

    W p_d = W_c cos_d + W_s sin_d,    W p_(-d) = W_c cos_d - W_s sin_d.

At 250 frames of width 768 the projection of 2T-1 distances is a quarter of the work of relative
attention. Legend: T frames, D width.
"""

import torch
from torch import Tensor, nn

# Products of distances and weights below which the plain way is as fast.
WORTHWHILE = 1 << 25


def project_distances(layer: nn.Module, positions: Tensor) -> Tensor:
    """What `layer(positions)` gives, in float rounding.

    Args:
        layer: a linear layer; one without a bias is what there is to gain from.
        positions: (2T-1, D) as `relative_positions` has them, or with dropout, on which the layer
            is called as it is. So it is on a GPU, where looking at them would wait for it.

    Returns:
        (2T-1, width of the layer's output).
    """
    if not (_gains(layer, positions) and _are_opposite(positions)):
        return layer(positions)
    zero = len(positions) // 2  # the row of distance 0
    odd, even = positions[zero:, 0::2], positions[zero:, 1::2]  # distances 0 to 1-T
    odd, even = odd @ layer.weight[:, 0::2].T, even @ layer.weight[:, 1::2].T
    if odd.requires_grad:
        return torch.cat(((even - odd)[1:].flip(0), even + odd))
    y = odd.new_empty(len(positions), odd.shape[1])
    torch.add(even, odd, out=y[zero:])
    y[:zero] = even.sub_(odd)[1:].flip(0)
    return y


def _gains(layer: nn.Module, positions: Tensor) -> bool:
    """Whether the plain way would be slower, and the choice may hang on values."""
    return (
        type(layer) is nn.Linear
        and layer.bias is None
        and positions.device.type == "cpu"
        and positions.dtype == layer.weight.dtype
        and positions.dtype in (torch.float32, torch.float64)
        and len(positions) * layer.weight.numel() >= WORTHWHILE
        and not positions.requires_grad
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def _are_opposite(positions: Tensor) -> bool:
    """Whether rows of opposite distances have opposite sines and the same cosines."""
    if not torch.equal(positions[0, 1::2], positions[-1, 1::2]):  # dropout, most likely
        return False
    half = len(positions) // 2
    left, right = positions[:half].flip(0), positions[half + 1 :]
    same = torch.equal(left[:, 1::2], right[:, 1::2])
    return same and torch.equal(left[:, 0::2], -right[:, 0::2])
