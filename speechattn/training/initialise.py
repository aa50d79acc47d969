"""Starting from trained models: fine-tuning, and streams of an audio-visual model.

Ma et al. (2102.06657) start their audio-visual model from the encoders of an audio and a visual
model; the CNVSRC systems go from one corpus to the next.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from speechattn.data.tokenizers import Tokenizer
from speechattn.decoders import BidirectionalDecoder, TransformerDecoder
from speechattn.errors import ConfigError
from speechattn.model.directory import load_model, read_config
from speechattn.model.speech_model import SpeechModel

logger = logging.getLogger(__name__)

# The classifier: weights with a row for each token, and those of self-conditioning, which have a
# column.
ROWS = re.compile(r"(ctc|stream_ctc\.\w+|decoder\.((left|right)\.)?(embed|output))\.(weight|bias)")
COLUMNS = re.compile(r"streams\.\w+\.encoder\.conditioning\.weight")


def initialise(
    model: SpeechModel,
    folders: Iterable[str | Path],
    tokenizer: Tokenizer,
    *,
    allow: Iterable[str] = (),
    renew_classifier: bool = False,
) -> int:
    """Copy the weights of trained models.

    A tensor is copied from the first model that has one of its name. The CTC head of a model of one
    modality also becomes the head of that stream in an audio-visual one, and a left-to-right
    decoder becomes the left-to-right half of a bidirectional one, or the other way round.

    The classifier (CTC heads, embedding and output of the decoder) of a model of other tokens is
    copied for the tokens that both have, and starts anew for the others. Between audio-visual
    models and those of one modality, heads and decoder are copied only if hidden frames have the
    same width.

    Args:
        model: what will be trained; changed in place.
        folders: model directories, the most important first.
        tokenizer: the tokens of `model`.
        allow: packages beside this one whose classes the models may name.
        renew_classifier: start the classifier anew, whatever the tokens.

    Returns:
        How many of the model's tensors were copied.

    Raises:
        ConfigError: a tensor of the same name has another shape, or a model has none to copy.
    """
    weights = model.state_dict()
    copied: dict[str, Tensor] = {}
    for folder in folders:
        source = weights_of(folder, model, tokenizer, allow, renew_classifier=renew_classifier)
        matching = {name: value for name, value in source.items() if name in weights}
        if not matching:
            kind = f"a model of {' and '.join(model.modalities)}"
            raise ConfigError(f"--init {folder}: none of its tensors has a place in {kind}")
        for name, value in matching.items():
            if value.shape != weights[name].shape:
                raise ConfigError(
                    f"--init {folder}: {name} is {tuple(value.shape)} there and "
                    f"{tuple(weights[name].shape)} here; `model` must agree with "
                    f"{folder}/config.yaml in that part"
                )
        new = {name: value for name, value in matching.items() if name not in copied}
        copied.update(new)
        logger.info("%d of %d tensors from %s", len(new), len(weights), folder)
    model.load_state_dict({**weights, **copied})
    return len(copied)


def weights_of(
    folder: str | Path,
    model: SpeechModel,
    tokenizer: Tokenizer,
    allow: Iterable[str],
    *,
    renew_classifier: bool = False,
) -> dict[str, Tensor]:
    """Return the tensors of a model directory under the names that they have in `model`."""
    if "model" not in read_config(folder):
        raise ConfigError(f"--init {folder}: its config.yaml has no section `model`")
    source = load_model(folder, allow)
    weights = source.state_dict()
    if isinstance(source.decoder, TransformerDecoder) and is_bidirectional(model):
        weights = rename(weights, "decoder.", "decoder.left.")
    elif is_bidirectional(source) and isinstance(model.decoder, TransformerDecoder):
        weights = rename(weights, "decoder.left.", "decoder.")
    if len(source.modalities) == 1 and len(model.modalities) > 1:
        heads = {k: v for k, v in weights.items() if k.startswith("ctc.")}
        weights.update(rename(heads, "ctc.", f"stream_ctc.{source.modalities[0]}."))
    fused = len(source.modalities) != len(model.modalities)
    if fused and source.output_size != model.output_size:
        logger.warning(
            "%s has hidden frames of width %d, here they are %d wide: CTC head and decoder start "
            "anew",
            folder,
            source.output_size,
            model.output_size,
        )
        weights = {k: v for k, v in weights.items() if not k.startswith(("ctc.", "decoder."))}
    if renew_classifier:
        return {k: v for k, v in weights.items() if not (ROWS.fullmatch(k) or COLUMNS.fullmatch(k))}
    theirs = Tokenizer.load(folder).tokens
    if theirs != tokenizer.tokens:
        weights = map_tokens(weights, model.state_dict(), theirs, tokenizer.tokens)
        common = len(set(theirs) & set(tokenizer.tokens))
        logger.warning(
            "%s has other tokens: the classifier is copied for %d of %d and starts anew for the "
            "rest", folder, common, tokenizer.vocab_size,
        )  # fmt: skip
    return weights


def map_tokens(
    weights: dict[str, Tensor], new: dict[str, Tensor], theirs: list[str], ours: list[str]
) -> dict[str, Tensor]:
    """Return a classifier's weights for tokens at other ids, with `new` ones for unknown tokens.

    `weights` are of a model of the tokens `theirs`, `new` of one of the tokens `ours`, both at
    their ids.
    """
    place = {token: i for i, token in enumerate(theirs)}
    pairs = [(i, place[token]) for i, token in enumerate(ours) if token in place]
    here, there = (list(ids) for ids in zip(*pairs, strict=True))
    result = dict(weights)
    for name, value in weights.items():
        axis = 1 if COLUMNS.fullmatch(name) else 0 if ROWS.fullmatch(name) else None
        if axis is None or name not in new:
            continue
        other = new[name].clone().transpose(0, axis)
        value = value.transpose(0, axis)
        if other.shape[1:] == value.shape[1:]:  # else it does not fit, which is said elsewhere
            other[here] = value[there]
            result[name] = other.transpose(0, axis).contiguous()
    return result


def is_bidirectional(model: SpeechModel) -> bool:
    """Return whether its decoder reads in both directions."""
    return isinstance(model.decoder, BidirectionalDecoder)


def rename(weights: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """Replace the prefix `old` of names by `new`."""
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: value
        for name, value in weights.items()
    }
