"""Linear layers with weights packed in oneDNN's layout, for float32 inference on a CPU.

A product with few rows spends much of its time reordering the weights. Here oneDNN reorders them
once, and fuses the activation after a layer. Sums are in float32, in another order.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechattn.deploy.replacement import replace_modules
from speechattn.encoders.feed_forward import FeedForward

PACKS = all(
    hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
)
MIN_WEIGHTS = 2**12  # smaller layers gain nothing
ACTIVATIONS = {functional.silu: "swish", functional.relu: "relu"}


class PackedLinear(nn.Module):
    """A linear layer and the activation after it. It has no gradients.

    Args:
        linear: the trained layer, float32 on a CPU.
        activation: `none`, `relu` or `swish`.
    """

    def __init__(self, linear: nn.Linear, activation: str = "none"):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.activation = activation
        # Plain attributes: they belong in no checkpoint and cannot move to a GPU.
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def __getstate__(self) -> dict:
        # A packed tensor can be neither copied nor saved.
        return {**self.__dict__, "packed": self.packed.to_dense()}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.packed)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        linear = torch.ops.mkldnn._linear_pointwise
        return linear(x, self.packed, self.bias, self.activation, [], "")


def pack(model: nn.Module) -> nn.Module:
    """Pack the linear layers of a float32 model on a CPU, where this processor's library can.

    Returns:
        The same model, in evaluation mode, not to be trained any more.
    """
    if not (PACKS and torch.backends.mkldnn.is_available()):
        return model.eval()
    with torch.no_grad():
        for block in list(model.modules()):
            fused = isinstance(block, FeedForward) and block.activation in ACTIVATIONS
            if fused and is_worth_packing(block.expand):
                block.expand = PackedLinear(block.expand, ACTIVATIONS[block.activation])
                block.activation = nn.Identity()
        replace_modules(model, nn.Linear, lambda x: PackedLinear(x) if is_worth_packing(x) else x)
    return model.eval()


def is_worth_packing(layer: nn.Module) -> bool:
    """Return whether packing this layer gains time."""
    plain = type(layer) is nn.Linear  # subclasses may compute something else
    return plain and layer.weight.dtype == torch.float32 and layer.weight.numel() >= MIN_WEIGHTS
