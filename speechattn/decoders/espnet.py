"""Weights of ESPnet's Transformer decoder, renamed for ours."""

import re

import torch
from torch import Tensor

_NAMES = (
    (r"^embed\.0\.", "embed."),
    (r"^output_layer\.", "output."),
    (r"^decoders\.", "layers."),
    (r"\.self_attn\.linear_out\.", ".self_attention.output."),
    (r"\.src_attn\.linear_q\.", ".cross_attention.query."),
    (r"\.src_attn\.linear_out\.", ".cross_attention.output."),
    (r"\.feed_forward\.w_1\.", ".feed_forward.0."),
    (r"\.feed_forward\.w_2\.", ".feed_forward.3."),
    (r"\.norm1\.", ".norm_self."),
    (r"\.norm2\.", ".norm_cross."),
    (r"\.norm3\.", ".norm_feed_forward."),
)
# Ours are products of several matrices at once.
_JOINED = (
    (".self_attn.linear_", "qkv", ".self_attention.project."),
    (".src_attn.linear_", "kv", ".cross_attention.key_value."),
)


def from_espnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The `state_dict` of our TransformerDecoder with an ESPnet decoder's weights.

    Args:
        state: `state_dict` of `espnet2.asr.decoder.transformer_decoder.TransformerDecoder`
            (names without `decoder.` before them), with its default options.
    """
    state = dict(state)
    converted = {}
    for layer in sorted({name.split(".")[1] for name in state if name.startswith("decoders.")}):
        for theirs, letters, ours in _JOINED:
            for kind in ("weight", "bias"):
                parts = [state.pop(f"decoders.{layer}{theirs}{c}.{kind}") for c in letters]
                converted[f"layers.{layer}{ours}{kind}"] = torch.cat(parts)
    for name, value in state.items():
        for theirs, ours in _NAMES:
            name = re.sub(theirs, ours, name)
        converted[name] = value
    return converted
