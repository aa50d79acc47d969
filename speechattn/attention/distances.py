"""The projection of the sinusoids of distances, at half the products.

Sines are odd and cosines even, so that a distance and its opposite have their projections in
common, but for a sign:

    W p_d = W_c cos_d + W_s sin_d,    W p_(-d) = W_c cos_d - W_s sin_d.

At 250 frames of width 768 the projection of 2T-1 distances is a quarter of the work of relative
attention.
"""

import torch
from torch import Tensor, nn

# Distances to either side whose projections are kept: 40 s of 40 ms, 3 MB a layer of width 768.
KEPT = 1000
# Products of distances and weights below which the plain way is as fast.
WORTHWHILE = 1 << 25


def project_distances(layer: nn.Module, positions: Tensor) -> Tensor:
    """Compute `layer(positions)`, up to rounding.

    Args:
        layer: a linear layer; only one without a bias becomes faster.
        positions: (2T-1, D) of `relative_positions`. After dropout, and on a GPU, where reading
            them would wait for the device, the layer is simply called.

    Returns:
        (2T-1, width of the layer's output).
    """
    if not (_is_worthwhile(layer, positions) and _are_opposite(positions)):
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


class DistanceCache:
    """The last projection of distances, reused while weights and sinusoids stay the same.

    In inference a layer would compute it again for each utterance. A shorter utterance's distances
    are the middle of a longer one's.
    """

    def __init__(self) -> None:
        self.forget()

    def __deepcopy__(self, memo: dict) -> "DistanceCache":
        return DistanceCache()  # a copy has weights of its own

    def __reduce__(self) -> tuple:
        return DistanceCache, ()

    def forget(self) -> None:
        """Empty the cache: weights may change without a trace, as by `parameter.data`."""
        self._of: tuple | None = None
        self._held: tuple = ()
        self._projected: Tensor | None = None

    def project(self, layer: nn.Module, positions: Tensor) -> Tensor:
        """Compute `project_distances`, of slices about the middle of one table only."""
        weight = getattr(layer, "weight", None)
        tensors = (positions, weight) if isinstance(weight, Tensor) else (positions,)
        if len(positions) > 2 * KEPT or not all(_is_traceable(x) for x in tensors):
            return project_distances(layer, positions)
        middle = positions[len(positions) // 2]
        of = id(layer), positions.stride(), *(_identity(x) for x in (middle, *tensors[1:]))
        if of != self._of or len(self._projected) < len(positions):
            self._projected = project_distances(layer, positions)
            # While these are held, nothing else can get their addresses.
            self._of, self._held = of, (layer, *tensors)
        centre, half = len(self._projected) // 2, len(positions) // 2
        return self._projected[centre - half : centre + half + 1]


def _is_traceable(x: Tensor) -> bool:
    """Return whether a change of the tensor will show in its identity."""
    return not (
        torch.is_grad_enabled()
        or x.is_inference()
        or torch.is_autocast_enabled(x.device.type)
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
    )


def _identity(x: Tensor) -> tuple:
    return x.data_ptr(), x._version, x.dtype, x.shape


def _is_worthwhile(layer: nn.Module, positions: Tensor) -> bool:
    """Return whether the plain way would be slower, and values may be read to decide."""
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
    """Return whether rows of opposite distances have opposite sines and the same cosines."""
    if not torch.equal(positions[0, 1::2], positions[-1, 1::2]):  # dropout, most likely
        return False
    half = len(positions) // 2
    left, right = positions[:half].flip(0), positions[half + 1 :]
    same = torch.equal(left[:, 1::2], right[:, 1::2])
    return same and torch.equal(left[:, 0::2], -right[:, 0::2])
