"""Trained models made ready for inference."""

import torch

from speechattn.deploy.packing import pack
from speechattn.deploy.quantisation import Scheme
from speechattn.deploy.quantisation import quantise as quantize_layers
from speechattn.frontends.inference import Precision, optimise
from speechattn.model.ensemble import Ensemble


def prepare(model, precision: Precision = "fp32", quantize: Scheme | None = None, device="cpu"):
    """Make a trained model ready for inference, in place."""
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
