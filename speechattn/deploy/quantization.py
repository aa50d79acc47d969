"""Linear layers in cheaper arithmetic, for inference on a CPU.

`quantize(model, "int8")` keeps weights as int8 with a scale for each output channel, and quantizes
activations on the fly with a scale and an offset for each frame or token, so that an item's result
does not depend on its batch. It is faster on x86 processors with AVX2. `quantize(model, "bf16")`
rounds less, and is faster on processors with bfloat16 instructions. Only the products are cheaper:
everything else stays in float32.
"""

import logging
from typing import Literal

import torch
from torch import Tensor, nn

from speechattn.deploy.packing import PackedLinear
from speechattn.deploy.replacement import replace_modules
from speechattn.deploy.visual_frontend import has_bf16_instructions
from speechattn.errors import ConfigError

Scheme = Literal["int8", "bf16"]

logger = logging.getLogger(__name__)

# In smaller layers quantizing the activations takes longer than the cheaper product saves.
MIN_WEIGHTS = 2**18

LEVELS = 255  # of activations, 0 to 255
WEIGHT_LEVELS = 127  # on either side of 0

# oneDNN's product of plain int8 tensors, which torch.compile emits too. FBGEMM's is about as fast,
# but takes tensors of a quantized type, which PyTorch is about to drop.
INT8 = all(hasattr(torch.ops.onednn, name) for name in ("qlinear_prepack", "qlinear_pointwise"))


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and inputs quantized row by row. It has no gradients.

    With x = offset + scale * q and q in 0..255, W x + b is scale * (W q) + offset * (W 1) + b, of
    which only W q is a matrix product: of bytes, summed in 32 bits. The trained layer is in float32
    on a CPU; its weights are copied.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        scale = safe_scale(weight) / WEIGHT_LEVELS  # (out,)
        # No buffers: they belong in no checkpoint and cannot move to a GPU.
        self.int8 = (weight / scale[:, None]).round().to(torch.int8)
        self.scale = scale
        self.zero = torch.zeros(len(weight), dtype=torch.int32)
        self.row_sums = self.weight.sum(1)  # W 1
        bias = torch.zeros_like(scale) if linear.bias is None else linear.bias.detach()
        self.bias = bias.clone()
        self.packed: Tensor | None = None  # the weights in oneDNN's layout

    def __getstate__(self) -> dict:
        return {**self.__dict__, "packed": None}  # cannot be copied or saved

    @property
    def weight(self) -> Tensor:
        """Return the float32 weights that the bytes stand for, (out_features, in_features)."""
        return self.int8 * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if 0 in x.shape:
            return x.new_zeros(*x.shape[:-1], self.out_features)
        offset = x.amin(-1, keepdim=True)  # (..., 1)
        scale = x.amax(-1, keepdim=True).sub_(offset).div_(LEVELS)
        scale.clamp_(min=torch.finfo(x.dtype).tiny)  # a row of one value
        # Half a step more, as the cast truncates.
        q = x.sub(offset).div_(scale).add_(0.5).to(torch.uint8)
        return torch.addcmul(self.bias, offset, self.row_sums).addcmul_(self.product(q), scale)

    def product(self, q: Tensor) -> Tensor:
        """Multiply bytes (..., in_features) by the weights, giving (..., out_features) float32."""
        if self.packed is None:
            self.packed = torch.ops.onednn.qlinear_prepack(self.int8, None)
        weights = (self.packed, self.scale, self.zero)
        return torch.ops.onednn.qlinear_pointwise(
            q, 1.0, 0, *weights, None, 1.0, 0, torch.float32, "none", [], ""
        )

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Bf16Linear(nn.Module):
    """A copy of a trained layer with products in bfloat16, summed in float32, without gradients."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight.detach().to(torch.bfloat16)
        self.bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return nn.functional.linear(x.bfloat16(), self.weight, self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


LAYERS: dict[Scheme, type[nn.Module]] = {"int8": Int8Linear, "bf16": Bf16Linear}


def safe_scale(weight: Tensor) -> Tensor:
    """Return what the largest int8 stands for, (out, in) -> (out,), so that no sum overflows.

    A processor without int8 dot products (VNNI) adds two neighboring products in 16 bits.
    255 * (a + b) fits where the weights a and b are of different signs or add up to no more than
    128. So the sum of such a pair has to stay within the range, not its larger weight: this costs
    less than half a bit on average, where halving all weights costs a whole one. The numbers are
    the same on every processor.
    """
    pairs = nn.functional.pad(weight, (0, weight.size(1) % 2)).unflatten(1, (-1, 2))
    above, below = (x.clamp(min=0).sum(2).amax(1) for x in (pairs, -pairs))  # (out,)
    return torch.maximum(above, below).clamp(min=torch.finfo(weight.dtype).tiny * 256)


def quantize(model: nn.Module, scheme: Scheme, smallest: int = MIN_WEIGHTS) -> nn.Module:
    """Replace the linear layers of a trained model by cheaper ones, in place.

    Args:
        model: a `SpeechModel`, an `Ensemble` or any part of one, on a CPU, not packed yet.
        scheme: 'int8' or 'bf16'.
        smallest: layers with fewer weights stay in float32.

    Returns:
        The model, in evaluation mode.

    Raises:
        ConfigError: no such scheme, the model is packed or not on a CPU, or this PyTorch has no
            oneDNN.
    """
    if scheme not in LAYERS:
        raise ConfigError(f"quantize: one of {', '.join(LAYERS)}, not {scheme!r}")
    devices = {p.device.type for p in model.parameters()}
    if devices - {"cpu"}:
        raise ConfigError(f"quantize: {scheme} is for a CPU, and the model is on {devices.pop()}")
    if scheme == "int8" and not (INT8 and torch.backends.mkldnn.is_available()):
        raise ConfigError("quantize: int8 needs oneDNN, which this PyTorch was built without")
    if scheme == "bf16" and not has_bf16_instructions():
        logger.warning("this processor has no bfloat16 instructions: 'bf16' is slower than 'fp32'")
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise ConfigError("quantize: the layers of this model are packed; quantize it first")

    def cheaper(layer: nn.Linear) -> nn.Module:
        # A visual frontend may compute in bfloat16 already.
        right = type(layer) is nn.Linear and layer.weight.dtype == torch.float32
        return LAYERS[scheme](layer) if right and layer.weight.numel() >= smallest else layer

    with torch.no_grad():
        replaced = replace_modules(model, nn.Linear, cheaper)
    if not replaced:
        logger.warning(
            "quantize: no linear layer in float32 has %d weights or more: nothing changes", smallest
        )
    return model.eval()
