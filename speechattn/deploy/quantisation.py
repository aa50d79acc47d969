"""Linear layers in cheaper arithmetic, for inference on a CPU.

`quantise(model, "int8")` keeps weights as int8, with a scale for each output channel, and rounds
what comes in to 8 bits on the fly, with a scale and an offset for each frame or token: so an item
gives what it gives alone, whatever else is in the batch, which one range for all would not do. It
is faster on x86 processors from AVX2 on. `quantise(model, "bf16")` rounds less, and is faster where
there are instructions for bfloat16. Everything but the products stays in float32.
"""

import logging
from typing import Literal

import torch
from torch import Tensor, nn

from speechattn.deploy.packing import PackedLinear, pack, unpack
from speechattn.errors import ConfigError
from speechattn.frontends.inference import has_bf16_instructions

Scheme = Literal["int8", "bf16"]
SCHEMES = ("int8", "bf16")

logger = logging.getLogger(__name__)

# Layers with fewer weights stay as they are: rounding what comes in would take longer than the
# product it makes cheaper.
WORTHWHILE = 2**18

LEVELS = 255  # of what comes in, 0 to 255
WEIGHT_LEVELS = 127  # to both sides of 0

# oneDNN's product of plain int8 tensors, which torch.compile emits too. FBGEMM's is about as fast,
# but wants tensors of a quantised type, which PyTorch is about to drop.
INT8 = all(hasattr(torch.ops.onednn, name) for name in ("qlinear_prepack", "qlinear_pointwise"))


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and inputs quantised row by row. It has no gradients.

    With x = offset + scale * q and q in 0..255, W x + b is scale * (W q) + offset * (W 1) + b, of
    which only W q is a matrix product: of bytes, summed in 32 bits.

    Args:
        linear: the trained layer, float32 on a CPU, of which nothing is shared.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        scale = safe_scale(weight) / WEIGHT_LEVELS  # (N,)
        # No buffers: no checkpoint has them, and the layer could not follow to a GPU.
        self.int8 = (weight / scale[:, None]).round().to(torch.int8)
        self.scale = scale
        self.zero = torch.zeros(len(weight), dtype=torch.int32)
        self.row_sums = self.weight.sum(1)  # W 1
        bias = torch.zeros_like(scale) if linear.bias is None else linear.bias.detach()
        self.bias = bias.clone()
        self.packed: Tensor | None = None  # the weights as oneDNN wants them

    def __getstate__(self) -> dict:
        return {**self.__dict__, "packed": None}  # it can be neither copied nor saved

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features) float32, what the bytes stand for."""
        return self.int8 * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if 0 in x.shape:
            return x.new_zeros(*x.shape[:-1], self.out_features)
        offset = x.amin(-1, keepdim=True)  # (..., 1)
        scale = x.amax(-1, keepdim=True).sub_(offset).div_(LEVELS)
        scale.clamp_(min=torch.finfo(x.dtype).tiny)  # a row of one value
        # Half a step more, as what follows cuts off.
        q = x.sub(offset).div_(scale).add_(0.5).to(torch.uint8)
        return torch.addcmul(self.bias, offset, self.row_sums).addcmul_(self.product(q), scale)

    def product(self, q: Tensor) -> Tensor:
        """Bytes (..., in_features) times the weights, (..., out_features) float32."""
        if self.packed is None:
            self.packed = torch.ops.onednn.qlinear_prepack(self.int8, None)
        weights = (self.packed, self.scale, self.zero)
        return torch.ops.onednn.qlinear_pointwise(
            q, 1.0, 0, *weights, None, 1.0, 0, torch.float32, "none", [], ""
        )

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Bf16Linear(nn.Module):
    """A linear layer with products in bfloat16, summed in float32. It has no gradients.

    Args:
        linear: the trained layer, float32 on a CPU, of which nothing is shared.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight.detach().to(torch.bfloat16)
        self.bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return nn.functional.linear(x.bfloat16(), self.weight, self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def safe_scale(weight: Tensor) -> Tensor:
    """What the largest int8 stands for, so that no sum overflows, (N, K) -> (N,).

    A processor without instructions for int8 dot products (VNNI) adds two neighbouring products in
    16 bits. 255 * (a + b) fits where the weights a and b are of different signs or add up to no
    more than 128; so it is the sum of such a pair that has to stay within the range, not its larger
    one. That costs less than half a bit on average, where halving all weights costs a whole one.
    The numbers are the same on every processor.
    """
    pairs = nn.functional.pad(weight, (0, weight.size(1) % 2)).unflatten(1, (-1, 2))
    above, below = (x.clamp(min=0).sum(2).amax(1) for x in (pairs, -pairs))  # (N,)
    return torch.maximum(above, below).clamp(min=torch.finfo(weight.dtype).tiny * 256)


def quantise(model: nn.Module, scheme: Scheme, smallest: int = WORTHWHILE) -> nn.Module:
    """Replace the linear layers of a trained model by cheaper ones, in place.

    Args:
        model: a `SpeechModel`, an `Ensemble` or any part of one, on a CPU; in evaluation mode from
            here on. If some of its layers were packed, so are those that stay as they are.
        scheme: 'int8' or 'bf16'.
        smallest: layers with fewer weights are left as they are.

    Returns:
        The model.

    Raises:
        ConfigError: no such scheme, the model is not on a CPU, or this PyTorch has no oneDNN.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"quantise: one of {', '.join(SCHEMES)}, not {scheme!r}")
    devices = {p.device.type for p in model.parameters()}
    if devices - {"cpu"}:
        raise ConfigError(f"quantise: {scheme} is for a CPU, and the model is on {devices.pop()}")
    if scheme == "int8" and not (INT8 and torch.backends.mkldnn.is_available()):
        raise ConfigError("quantise: int8 needs oneDNN, which this PyTorch has not")
    if scheme == "bf16" and not has_bf16_instructions():
        logger.warning("no bfloat16 instructions found here: 'bf16' will be slower than 'fp32'")
    kind = {"int8": Int8Linear, "bf16": Bf16Linear}[scheme]
    packed = any(isinstance(module, PackedLinear) for module in model.modules())
    unpack(model)
    replaced = 0
    with torch.no_grad():
        for parent in list(model.modules()):
            for name, layer in parent.named_children():
                # A visual frontend may compute in bfloat16 already.
                right = type(layer) is nn.Linear and layer.weight.dtype == torch.float32
                if right and layer.weight.numel() >= smallest:
                    setattr(parent, name, kind(layer))
                    replaced += 1
    if not replaced:
        logger.warning(
            "quantise: no linear layer in float32 has %d weights or more: nothing changes", smallest
        )
    return pack(model) if packed else model.eval()
