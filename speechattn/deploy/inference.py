"""`prepare`: a trained model made ready for inference on a device."""

from typing import TypeVar

import torch
from torch import nn

from speechattn.deploy.exported import OnnxModel
from speechattn.deploy.packing import pack
from speechattn.deploy.quantization import Scheme
from speechattn.deploy.quantization import quantize as quantize_layers
from speechattn.deploy.replacement import replace_modules
from speechattn.deploy.visual_frontend import Precision, fold_frontend
from speechattn.errors import ConfigError
from speechattn.frontends import Frontend

Model = TypeVar("Model", bound=nn.Module)


def prepare(
    model: Model,
    precision: Precision = "fp32",
    quantize: Scheme | None = None,
    device: str | torch.device = "cpu",
) -> Model:
    """Make a trained model ready for inference, in place.

    On a CPU this folds visual frontends and packs linear layers, which leaves the numbers as they
    are to 1e-4; `precision` and `quantize` trade accuracy for speed. To another device the model is
    only moved.

    Args:
        model: a `SpeechModel`, an `Ensemble` or an `OnnxModel`. It cannot be trained any more.
        precision: of visual frontends on a CPU: 'fp32', 'mixed' or 'bf16' (see `fold_frontend`).
        quantize: of large linear layers on a CPU: 'int8' or 'bf16'; None for float32.
        device: where the model runs.

    Returns:
        The model, in evaluation mode.

    Raises:
        ConfigError: an unknown value, `quantize` on another device than the CPU, or exported
            graphs that are to run quantized or on another device.
    """
    on_cpu = torch.device(device).type == "cpu"
    if any(isinstance(module, OnnxModel) for module in model.modules()):
        if not on_cpu:
            raise ConfigError(f"device {device}: exported graphs run on the CPU")
        if quantize is not None:
            raise ConfigError(f"quantize {quantize}: exported graphs stay in float32")
    if quantize is not None and not on_cpu:
        raise ConfigError(f"quantize {quantize}: is for a CPU, and the device is {device}")
    model = model.to(device).eval()
    if not on_cpu:
        return model
    replace_modules(model, Frontend, lambda frontend: fold_frontend(frontend, precision))
    if quantize is not None:
        quantize_layers(model, quantize)
    return pack(model)
