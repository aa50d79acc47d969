"""Trained models made ready for inference."""

import torch

from speechattn.deploy.export import OnnxModel
from speechattn.deploy.packing import pack
from speechattn.deploy.quantisation import Scheme
from speechattn.deploy.quantisation import quantise as quantize_layers
from speechattn.errors import ConfigError
from speechattn.frontends.inference import Precision, optimise
from speechattn.model.ensemble import Ensemble


def prepare(model, precision: Precision = "fp32", quantize: Scheme | None = None, device="cpu"):
    """Make a trained model ready for inference, in place."""
    if any(isinstance(module, OnnxModel) for module in model.modules()):
        if torch.device(device).type != "cpu":
            raise ConfigError(f"device {device}: exported graphs run on the CPU")
        if quantize is not None:
            raise ConfigError(f"quantize {quantize}: exported graphs stay in float32")
    if torch.device(device).type == "cpu":
        for one in model.models.values() if isinstance(model, Ensemble) else [model]:
            if "video" in one.modalities:
                exported = hasattr(one, "look")
                owner, name = (one, "look") if exported else (one.streams["video"], "frontend")
                setattr(owner, name, optimise(getattr(owner, name), precision))
    model = model.to(device).eval()
    if quantize is not None:
        quantize_layers(model, quantize)
    if torch.device(device).type == "cpu":
        pack(model)
    return model
