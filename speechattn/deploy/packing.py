"""Linear layers with weights laid out for the processor, for inference in float32 on a CPU.

A matrix product of a few rows spends much of its time on bringing the weights into the order that
its inner loop wants. oneDNN does so once here, and computes the activation behind a layer along
with it. The numbers are float32's, summed in another order.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechattn.encoders.feed_forward import FeedForward

PACKS = all(
    hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
)
# Layers with fewer weights gain nothing.
WORTHWHILE = 2**12
ACTIVATIONS = {functional.silu: "swish", functional.relu: "relu"}


class PackedLinear(nn.Module):
    """A linear layer and the activation behind it. It has no gradients.

    Args:
        linear: the trained layer, float32 on a CPU.
        activation: `none`, `relu` or `swish`.
    """

    def __init__(self, linear: nn.Linear, activation: str = "none"):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.activation = activation
        # Plain attributes: no checkpoint has them, and the layer could not follow to a GPU.
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def __getstate__(self) -> dict:
        # What is packed can be neither copied nor saved.
        return {**self.__dict__, "packed": self.packed.to_dense()}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.packed)

    def unpacked(self) -> nn.Linear:
        """The layer that was packed, without the activation."""
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta"
        )
        linear.weight = nn.Parameter(self.packed.to_dense())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias)
        return linear

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, self.activation, [], ""
        )


def pack(model: nn.Module) -> nn.Module:
    """Pack the linear layers of a model in place, where this processor's library can.

    Args:
        model: float32 on a CPU, not to be trained any more.

    Returns:
        The model, in evaluation mode.
    """
    if not (PACKS and torch.backends.mkldnn.is_available()):
        return model.eval()
    with torch.no_grad():
        for parent in list(model.modules()):
            fused = isinstance(parent, FeedForward) and parent.activation in ACTIVATIONS
            if fused and type(parent.expand) is nn.Linear and is_worth_it(parent.expand):
                parent.expand = PackedLinear(parent.expand, ACTIVATIONS[parent.activation])
                parent.activation = nn.Identity()
            for name, layer in parent.named_children():
                if type(layer) is nn.Linear and is_worth_it(layer):
                    setattr(parent, name, PackedLinear(layer))
    return model.eval()


def unpack(model: nn.Module) -> nn.Module:
    """Put the layers back that `pack` took, in place; of a model without such changes nothing."""
    functions = {name: function for function, name in ACTIVATIONS.items()}
    with torch.no_grad():
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, PackedLinear):
                    setattr(parent, name, layer.unpacked())
                    if layer.activation != "none":
                        del parent.activation  # a module, which no function may replace
                        parent.activation = functions[layer.activation]
    return model


def is_worth_it(layer: nn.Linear) -> bool:
    """Whether packing is for this layer."""
    return layer.weight.dtype == torch.float32 and layer.weight.numel() >= WORTHWHILE
