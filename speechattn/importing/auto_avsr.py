"""Checkpoints of auto_avsr and of the CNVSRC baselines made from it.

The code that wrote them (github.com/mpc001/auto_avsr, MKT-Dataoceanai/CNVSRC2023Baseline,
sectum1919/CNVSRC2024Baseline) is a fork of ESPnet 1, macaron style, with relative positions of the
`latest` kind and its own names of frontends. Of names there are two generations: the frontend
inside the encoder, its projection being `encoder.embed.0`, and from 2023 on beside it, with
`proj_encoder`. A checkpoint has no configuration: sizes are read off the weights.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from speechattn.errors import ConfigError
from speechattn.importing.checkpoint import map_part
from speechattn.importing.espnet import Names, Rules, decoder_names, encoder_names, numbers, rename
from speechattn.importing.keys import Keys, fixed, ignored, refuse, translate

# `model.visual_backbone` or `model.audio_backbone` of their configurations.
BACKBONE: Keys = {
    "transformer_encoder_attn_layer_type": fixed("rel_mha"),
    "rel_pos_type": fixed("latest"),
    "macaron_style": fixed(True),
    "use_cnn_module": fixed(True),
    "zero_triu": fixed(False),
    "a_upsample_ratio": fixed(1),
    "relu_type": fixed("swish", "prelu"),
    "transformer_input_layer": fixed("conv3d", "conv1d"),
    # Sizes are read off the weights.
    **ignored(
        "adim aheads eunits elayers cnn_module_kernel ddim dheads dunits dlayers r_dlayers "
        "dropout_rate transformer_attn_dropout_rate lsm_weight "
        "transformer_length_normalized_loss mtlalpha mtlbeta ctc_type"
    ),
}


def newer_names(names: Iterable[str]) -> dict[str, str]:
    """Map the newer generation's names to the names that the weights have."""
    found = {}
    for name in names:
        new = re.sub(r"^encoder\.frontend\.", "frontend.", name)
        new = re.sub(r"^encoder\.embed\.0\.", "proj_encoder.", new)
        found[new] = name
    return found


def weight_names(names: Iterable[str]) -> Names:
    """Map each of our names to theirs; unknown ones stay as they are."""
    real = newer_names(names)
    stream = "audio" if "frontend.trunk.conv1.weight" in real else "video"
    frontend_names = partial(_frontend_names, stream)
    left = "decoder.left." if any(n.startswith("r_decoder.") for n in real) else "decoder."
    found = {
        **map_part(real, frontend_names, f"streams.{stream}.frontend.", "frontend."),
        **map_part(real, encoder_names, f"streams.{stream}.encoder.", "encoder."),
        **map_part(real, decoder_names, left, "decoder."),
        **map_part(real, decoder_names, "decoder.right.", "r_decoder."),
    }
    for name in real:
        if name.split(".")[0] not in ("encoder", "decoder", "r_decoder", "frontend"):
            ours = re.sub(r"^ctc\.ctc_lo\.", "ctc.", name)
            projection = f"streams.{stream}.encoder.input.projection."
            found[re.sub(r"^proj_encoder\.", projection, ours)] = (name,)
    return {ours: tuple(real[part] for part in parts) for ours, parts in found.items()}


_FRONTEND_RULES: Rules = (
    (r"^frontend3D\.0\.", "stem.0."),
    (r"^frontend3D\.1\.", "stem_norm."),
    (r"^frontend3D\.2\.", "stem_act."),
    (r"^trunk\.conv1\.", "stem."),
    (r"^trunk\.bn1\.", "stem_norm."),
    (r"^trunk\.relu\.", "stem_act."),
    (r"\.bn([12])\.", r".norm\1."),
    (r"\.relu([12])\.", r".act\1."),
)
_SHORTCUT: Mapping[str, Rules] = {
    "audio": ((r"\.downsample\.0\.", ".shortcut."), (r"\.downsample\.1\.", ".shortcut_norm.")),
    "video": ((r"\.downsample\.", ".shortcut."),),
}


def _frontend_names(stream: str, names: list[str]) -> Names:
    """Map names of a ResNet-18 with a 3-D or a 1-D stem."""
    stages = [f"trunk.layer{stage}" for stage in range(1, 5)]
    blocks = [f"{stage}.{block}." for stage in stages for block in numbers(names, stage)]
    # Ours are counted through all stages.
    counted = tuple((f"^{re.escape(name)}", f"trunk.{i}.") for i, name in enumerate(blocks))
    rules = (*_FRONTEND_RULES, *_SHORTCUT[stream], *counted)
    return {rename(name, rules): (name,) for name in names}


def read_sizes(
    state: Mapping[str, Tensor], backbone: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Return our `model:` section for these weights.

    Args:
        state: the checkpoint's.
        backbone: `model.visual_backbone` or `model.audio_backbone` of its configuration, or empty.
            It tells the decoder's heads, which the weights do not show; without it they are as wide
            as the encoder's.
        where: the file, for messages.
    """
    problems: list[str] = []
    if backbone:
        translate(backbone, BACKBONE, "", problems)
    refuse(problems, f"{where}: its configuration cannot be imported")
    shapes = {name: tuple(state[theirs].shape) for name, theirs in newer_names(state).items()}
    if any(name.startswith("aux_encoder.") for name in shapes):
        raise ConfigError(f"{where}: audio-visual checkpoints of auto_avsr cannot be imported")

    def size(name: str, axis: int = 0) -> int:
        shape = shapes.get(name)
        if shape is None or not shape[axis:]:
            found = "missing" if shape is None else shape
            raise ConfigError(f"{where}: is no checkpoint of auto_avsr: {name} is {found}")
        return shape[axis]

    audio, frontend = _frontend_section(shapes, size)
    block, dropout = "encoder.encoders.0", {"dropout": 0.1, "attention_dropout": 0.1}
    encoder = {
        "input_size": frontend["init_args"]["channels"][-1],
        "output_size": size("proj_encoder.weight"),
        "attention_heads": size(f"{block}.self_attn.pos_bias_u"),
        "linear_units": size(f"{block}.feed_forward.w_1.weight"),
        "num_blocks": len(numbers(shapes, "encoder.encoders")),
        "subsampling": "projection",
        "conv_kernel": size(f"{block}.conv_module.depthwise_conv.weight", -1),
        "macaron": True,
        **dropout,
    }
    width, head_width = size("decoder.embed.0.weight", 1), size(f"{block}.self_attn.pos_bias_u", 1)
    decoder = {
        "memory_size": encoder["output_size"],
        "width": width,
        "attention_heads": backbone.get("dheads", width // head_width),
        "linear_units": size("decoder.decoders.0.feed_forward.w_1.weight"),
        "num_blocks": len(numbers(shapes, "decoder.decoders")),
        **dropout,
    }
    kind = "TransformerDecoder"
    if layers := numbers(shapes, "r_decoder.decoders"):
        kind, decoder["reverse_blocks"] = "BidirectionalDecoder", len(layers)
    return {
        "audio" if audio else "video": {
            "frontend": frontend,
            "encoder": {"class_path": "speechattn.encoders.ConformerEncoder", "init_args": encoder},
        },
        "decoder": {"class_path": f"speechattn.decoders.{kind}", "init_args": decoder},
        "ctc_dropout": 0.1,
    }


def _frontend_section(
    shapes: Mapping[str, tuple[int, ...]], size: Callable[[str], int]
) -> tuple[bool, dict[str, Any]]:
    """Return whether the frontend takes sound, and its section."""
    audio = "frontend.trunk.conv1.weight" in shapes
    slopes = "frontend.trunk.relu.weight" if audio else "frontend.trunk.layer1.0.relu1.weight"
    stages = [f"frontend.trunk.layer{stage}" for stage in range(1, 5)]
    sizes: dict[str, Any] = {
        "channels": [size(f"{stage}.0.conv1.weight") for stage in stages],
        "blocks": [len(numbers(shapes, stage)) for stage in stages],
        "activation": "prelu" if slopes in shapes else "swish",
    }
    if not audio:
        sizes["stem_channels"] = size("frontend.frontend3D.0.weight")
    name = "Conv1dResNet" if audio else "ResNet3D"
    return audio, {"class_path": f"speechattn.frontends.{name}", "init_args": sizes}
