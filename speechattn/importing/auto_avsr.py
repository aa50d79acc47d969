"""Checkpoints of auto_avsr and of the CNVSRC baselines that are made from it.

Facts about the code that wrote them (github.com/mpc001/auto_avsr, MKT-Dataoceanai/
CNVSRC2023Baseline, sectum1919/CNVSRC2024Baseline): a fork of ESPnet 1's modules, with relative
positions of the `latest` kind, macaron style, and names of its own for the frontends. There are two
generations of names: the frontend inside the encoder with its projection as `encoder.embed.0`, and,
from 2023 on, beside it with the projection as `proj_encoder`. A checkpoint does not say what made
it, so the sizes are read off the weights.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from speechattn.errors import ConfigError
from speechattn.importing.checkpoint import under, without
from speechattn.importing.espnet import Names, decoder_names, encoder_names, numbers
from speechattn.importing.keys import IGNORED, Keys, fixed, translate

# What `model.visual_backbone` or `model.audio_backbone` of their configurations may hold.
BACKBONE: Keys = {
    "transformer_encoder_attn_layer_type": fixed("rel_mha"),
    "rel_pos_type": fixed("latest"),
    "macaron_style": fixed(True),
    "use_cnn_module": fixed(True),
    "zero_triu": fixed(False),
    "a_upsample_ratio": fixed(1),
    "relu_type": fixed("swish", "prelu"),
    "transformer_input_layer": fixed("conv3d", "conv1d"),
    # Sizes are read off the weights; heads below.
    **dict.fromkeys(
        (
            "adim aheads eunits elayers cnn_module_kernel ddim dheads dunits dlayers r_dlayers "
            "dropout_rate transformer_attn_dropout_rate lsm_weight "
            "transformer_length_normalized_loss mtlalpha mtlbeta ctc_type"
        ).split(),
        IGNORED,
    ),
}


def normalised(names: Iterable[str]) -> dict[str, str]:
    """Names of either generation as the newer writes them, each with the name it really has."""
    found = {}
    for name in names:
        new = re.sub(r"^encoder\.frontend\.", "frontend.", name)
        new = re.sub(r"^encoder\.embed\.0\.", "proj_encoder.", new)
        found[new] = name
    return found


def weight_names(names: Iterable[str]) -> Names:
    """For each name of ours those of theirs that make it up; unknown ones stay as they are."""
    real = normalised(names)
    stream = "audio" if "frontend.trunk.conv1.weight" in real else "video"
    found: Names = {}
    found |= under(
        encoder_names(without(real, "encoder.")), f"streams.{stream}.encoder.", "encoder."
    )
    found |= under(decoder_names(without(real, "decoder.")), _left(real), "decoder.")
    found |= under(decoder_names(without(real, "r_decoder.")), "decoder.right.", "r_decoder.")
    frontend = _frontend_names(without(real, "frontend."), stream)
    found |= under(frontend, f"streams.{stream}.frontend.", "frontend.")
    for name in real:
        if name.startswith("proj_encoder."):
            ours = name.replace("proj_encoder", f"streams.{stream}.encoder.input.projection")
        elif name.startswith("ctc.ctc_lo."):
            ours = name.replace("ctc.ctc_lo", "ctc")
        elif name.split(".")[0] in ("encoder", "decoder", "r_decoder", "frontend"):
            continue
        else:
            ours = name
        found[ours] = (name,)
    return {ours: tuple(real[part] for part in parts) for ours, parts in found.items()}


def _left(names: Iterable[str]) -> str:
    """Where the left-to-right decoder is in our model."""
    both = any(name.startswith("r_decoder.") for name in names)
    return "decoder.left." if both else "decoder."


def _frontend_names(names: list[str], stream: str) -> Names:
    """ResNet-18 behind a 3-D or a 1-D stem."""
    stem = {
        "audio": {"trunk.conv1": "stem", "trunk.bn1": "stem_norm", "trunk.relu": "stem_act"},
        "video": {
            "frontend3D.0": "stem.0",
            "frontend3D.1": "stem_norm",
            "frontend3D.2": "stem_act",
        },
    }[stream]
    shortcut = {"audio": ("shortcut", "shortcut_norm"), "video": ("shortcut.0", "shortcut.1")}
    blocks = [
        f"trunk.layer{stage}.{block}"
        for stage in range(1, 5)
        for block in numbers(names, f"trunk.layer{stage}")
    ]
    inner = {
        **{f"bn{i}": f"norm{i}" for i in (1, 2)},
        **{f"relu{i}": f"act{i}" for i in (1, 2)},
        **{f"downsample.{i}": shortcut[stream][i] for i in (0, 1)},
    }
    found: Names = {}
    for name in names:
        layer, _, kind = name.rpartition(".")
        if layer in stem:
            layer = stem[layer]
        elif (match := re.match(r"(trunk\.layer\d\.\d+)\.(.+)$", layer)) and match[1] in blocks:
            layer = f"trunk.{blocks.index(match[1])}.{inner.get(match[2], match[2])}"
        found[f"{layer}.{kind}"] = (name,)
    return found


def read_sizes(
    state: Mapping[str, Tensor], backbone: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Our `model:` section for these weights.

    Args:
        state: the checkpoint's.
        backbone: `model.visual_backbone` or `model.audio_backbone` of its configuration, or
            nothing. The number of the decoder's heads, which the weights do not show, is taken of
            it; without it they are as wide as the encoder's.
        where: the file, for messages.
    """
    problems: list[str] = []
    if backbone:
        translate(backbone, BACKBONE, "", problems)
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(f"{where}: its configuration cannot be imported:{lines}")
    real = normalised(state)
    if any(name.startswith("aux_encoder.") for name in real):
        raise ConfigError(f"{where}: audio-visual checkpoints of auto_avsr cannot be imported")

    def size(name: str, axis: int = 0) -> int:
        if name not in real:
            raise ConfigError(f"{where}: is no checkpoint of auto_avsr: {name} is not there")
        shape = tuple(state[real[name]].shape)
        if not shape[axis:]:
            raise ConfigError(f"{where}: is no checkpoint of auto_avsr: {name} is {shape}")
        return shape[axis]

    def layers(prefix: str) -> int:
        return len(numbers(real, prefix))

    width = size("proj_encoder.weight")
    audio = "frontend.trunk.conv1.weight" in real
    heads = size("encoder.encoders.0.self_attn.pos_bias_u")
    decoder_width = size("decoder.embed.0.weight", 1)
    head_width = size("encoder.encoders.0.self_attn.pos_bias_u", 1)
    decoder = {
        "memory_size": width,
        "width": decoder_width,
        "attention_heads": backbone.get("dheads", decoder_width // head_width),
        "linear_units": size("decoder.decoders.0.feed_forward.w_1.weight"),
        "num_blocks": layers("decoder.decoders"),
        "dropout": 0.1,
        "attention_dropout": 0.1,
    }
    class_path = "speechattn.decoders.TransformerDecoder"
    if any(name.startswith("r_decoder.") for name in real):
        class_path = "speechattn.decoders.BidirectionalDecoder"
        decoder["reverse_blocks"] = layers("r_decoder.decoders")
    act = "frontend.trunk.relu.weight" if audio else "frontend.trunk.layer1.0.relu1.weight"
    frontend = {
        "channels": [size(f"frontend.trunk.layer{i}.0.conv1.weight") for i in range(1, 5)],
        "blocks": [layers(f"frontend.trunk.layer{i}") for i in range(1, 5)],
        "activation": "prelu" if act in real else "swish",
    }
    if not audio:
        frontend["stem_channels"] = size("frontend.frontend3D.0.weight")
    encoder = {
        "input_size": frontend["channels"][-1],
        "output_size": width,
        "attention_heads": heads,
        "linear_units": size("encoder.encoders.0.feed_forward.w_1.weight"),
        "num_blocks": layers("encoder.encoders"),
        "subsampling": "projection",
        "conv_kernel": size("encoder.encoders.0.conv_module.depthwise_conv.weight", -1),
        "macaron": True,
        "dropout": 0.1,
        "attention_dropout": 0.1,
    }
    name = "Conv1dResNet" if audio else "ResNet3D"
    stream = {
        "frontend": {"class_path": f"speechattn.frontends.{name}", "init_args": frontend},
        "encoder": {"class_path": "speechattn.encoders.ConformerEncoder", "init_args": encoder},
    }
    return {
        "audio" if audio else "video": stream,
        "decoder": {"class_path": class_path, "init_args": decoder},
        "ctc_dropout": 0.1,
    }
