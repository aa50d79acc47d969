"""ESPnet's names of weights turned into ours: the one place that knows them.

They are those of ESPnet 202611 (`espnet2.asr`, `espnet2.lm`), and older ones of the same meaning.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

# Patterns and their replacements; every rule that matches is applied, in turn.
Rules = Sequence[tuple[str, str]]
# Each of our names, and theirs: several where we join weights.
Names = dict[str, tuple[str, ...]]

ENCODER_RULES: Rules = (
    # The first convolution's index counts the activations in between.
    (r"^embed\.conv\.0\.", "input.convolutions.0."),
    (r"^embed\.conv\.2\.", "input.convolutions.1."),
    (r"^embed\.conv\.4\.", "input.convolutions.2."),
    (r"^embed\.out\.(0\.)?(?=weight|bias)", "input.projection."),
    (r"^embed\.0\.(?=weight|bias)", "input.projection."),
    (r"^embed\.1\.(?=weight|bias)", "input.norm."),
    (r"^after_norm\.", "norm."),
    (r"^conditioning_layer\.", "conditioning."),
    (r"^encoders\.", "blocks."),
    (r"\.(self_attn|attn)\.", ".attention."),
    (r"\.attention\.linear_q\.", ".attention.query."),
    (r"\.attention\.linear_k\.", ".attention.key."),
    (r"\.attention\.linear_v\.", ".attention.value."),
    (r"\.attention\.linear_out\.", ".attention.output."),
    (r"\.attention\.linear_pos\.", ".attention.position."),
    (r"\.attention\.pos_bias_u$", ".attention.content_bias"),
    (r"\.attention\.pos_bias_v$", ".attention.position_bias"),
    (r"\.norm_ff_macaron\.", ".macaron_norm."),
    (r"\.feed_forward_macaron\.", ".macaron."),
    (r"\.norm_ff\.", ".feed_forward_norm."),
    (r"\.norm_mha\.", ".attention_norm."),
    (r"\.norm_conv\.", ".convolution_norm."),
    (r"\.norm_mlp\.", ".cgmlp_norm."),
    (r"\.norm_final\.", ".norm."),
    (r"\.w_1\.", ".expand."),
    (r"\.w_2\.", ".contract."),
    (r"\.conv_module\.", ".convolution."),
    (r"\.pointwise_con?v1\.", ".expand."),  # "cov" is how auto_avsr writes it
    (r"\.pointwise_con?v2\.", ".contract."),
    (r"\.depthwise_conv\.", ".depthwise."),
    (r"\.channel_proj1\.0\.", ".expand."),
    (r"\.channel_proj2\.", ".contract."),
    (r"\.csgu\.norm\.", ".norm."),
    (r"\.csgu\.conv\.", ".depthwise."),
    (r"\.csgu\.linear\.", ".linear."),
    (r"\.pooling_proj1\.", ".average.attention_score."),
    (r"\.pooling_proj2\.", ".average.cgmlp_score."),
    (r"\.weight_proj1\.", ".average.attention_weight."),
    (r"\.weight_proj2\.", ".average.cgmlp_weight."),
    (r"\.depthwise_conv_fusion\.", ".merge_depthwise."),
    (r"\.merge_proj\.", ".merge."),
)

_TRANSFORMER_RULES: Rules = (
    (r"\.self_attn\.linear_out\.", ".self_attention.output."),
    (r"\.feed_forward\.w_1\.", ".feed_forward.0."),
    (r"\.feed_forward\.w_2\.", ".feed_forward.3."),
    (r"\.norm1\.", ".norm_self."),
)
DECODER_RULES: Rules = (
    (r"^embed\.0\.", "embed."),
    (r"^output_layer\.", "output."),
    (r"^output_norm\.", "after_norm."),  # before 2020
    (r"^decoders\.", "layers."),
    (r"\.src_attn\.linear_q\.", ".cross_attention.query."),
    (r"\.src_attn\.linear_out\.", ".cross_attention.output."),
    *_TRANSFORMER_RULES,
    (r"\.norm2\.", ".norm_cross."),
    (r"\.norm3\.", ".norm_feed_forward."),
)
LM_RULES: Rules = (
    (r"^encoder\.embed\.", "input."),
    (r"^encoder\.encoders\.", "layers."),
    (r"^encoder\.after_norm\.", "after_norm."),
    (r"^decoder\.", "output."),
    *_TRANSFORMER_RULES,
    (r"\.norm2\.", ".norm_feed_forward."),
)
# We join several matrices into one: their prefix, the letters in order, our prefix.
_JOINED = (
    (".self_attn.linear_", "qkv", ".self_attention.project."),
    (".src_attn.linear_", "kv", ".cross_attention.key_value."),
)
# Tables of positions, which old versions saved, are no weights.
POSITIONS = re.compile(r"(^|\.)pe$")


def rename(name: str, rules: Rules) -> str:
    """Apply to a name every rule that matches."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def encoder_names(names: Iterable[str]) -> Names:
    """Map each of our names to ESPnet's, without `encoder.`.

    A name that no rule knows stays as it is, for strict loading to refuse.
    """
    return {rename(n, ENCODER_RULES): (n,) for n in names if not POSITIONS.search(n)}


def decoder_names(names: Iterable[str]) -> Names:
    """Map names as `encoder_names` does, of a Transformer decoder without `decoder.`."""
    return _layer_names(names, "decoders", DECODER_RULES)


def lm_names(names: Iterable[str]) -> Names:
    """Map names as `encoder_names` does, of a Transformer language model without `lm.`."""
    return _layer_names(names, "encoder.encoders", LM_RULES)


def _layer_names(names: Iterable[str], layers: str, rules: Rules) -> Names:
    left = {name: None for name in names if not POSITIONS.search(name)}  # an ordered set
    found: Names = {}
    for layer in numbers(left, layers):
        for theirs, letters, ours in _JOINED:
            for kind in ("weight", "bias"):
                parts = tuple(f"{layers}.{layer}{theirs}{letter}.{kind}" for letter in letters)
                if left.keys() >= set(parts):
                    found[f"layers.{layer}{ours}{kind}"] = parts
                    for part in parts:
                        del left[part]
    return found | {rename(name, rules): (name,) for name in left}


def take(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return weights by our names, several of theirs joined along the first axis.

    Raises:
        ValueError: their shapes do not let them be joined.
    """
    weights = {}
    for ours, theirs in names.items():
        value = state[theirs[0]]
        if len(theirs) > 1:
            try:
                value = torch.cat([state[name] for name in theirs])
            except RuntimeError as error:
                raise ValueError(f"{', '.join(theirs)} are not of one shape: {error}") from error
        if "pointwise_co" in theirs[0] and value.dim() == 3:
            value = value.squeeze(-1)  # a Linear of ours
        weights[ours] = value
    return weights


def encoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of our encoder for that of an ESPnet encoder, or gradients."""
    return take(state, encoder_names(state))


def decoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of our TransformerDecoder for that of ESPnet's, or gradients."""
    return take(state, decoder_names(state))


def numbers(names: Iterable[str], prefix: str) -> list[str]:
    """Return the numbers that follow `prefix.` in the names, in order."""
    prefix = f"{prefix}."
    found = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    return sorted(found, key=lambda number: (len(number), number))
