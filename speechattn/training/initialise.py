"""Starting from trained models: fine-tuning, and streams of an audio-visual model.

Ma et al. (2102.06657) begin their audio-visual model with the encoders of their audio and their
visual model; the CNVSRC systems go from one corpus to the next.
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

# The classifier: what has a row for each token, and what self-conditioning makes of a head's
# posteriors, which has a column.
ROWS = re.compile(r"(ctc|stream_ctc\.\w+|decoder\.((left|right)\.)?(embed|output))\.(weight|bias)")
COLUMNS = re.compile(r"streams\.\w+\.encoder\.conditioning\.weight")


def initialise(
    model: SpeechModel,
    folders: Iterable[str | Path],
    tokenizer: Tokenizer,
    allow: Iterable[str] = (),
    renew_classifier: bool = False,
) -> int:
    """Take over the weights of trained models.

    What has the same name is taken from the first model that has it; the CTC head of a model of
    one modality also becomes the head of that stream in an audio-visual one, and a left-to-right
    decoder the left-to-right half of a bidirectional one, or the other way round.

    The classifier (CTC heads, embedding and output of the decoder) of a model of other tokens is
    taken over for the tokens that both have, and begins anew for the others. Heads and decoder
    are taken only, where one model is audio-visual and the other not, if hidden frames are as wide.

    Args:
        model: what will be trained; changed in place.
        folders: model directories, the most important first.
        tokenizer: the tokens of `model`.
        allow: packages beside this one whose classes the models may name.
        renew_classifier: it begins anew, whatever the tokens.

    Returns:
        How many of the model's tensors were taken over.

    Raises:
        ConfigError: a part of the same name has another shape, or a model has nothing to give.
    """
    wanted = model.state_dict()
    taken: dict[str, Tensor] = {}
    for folder in folders:
        given = weights_of(folder, model, tokenizer, allow, renew_classifier)
        fitting = {name: value for name, value in given.items() if name in wanted}
        if not fitting:
            raise ConfigError(
                f"--init {folder}: nothing in it has a place in a model of "
                f"{' and '.join(model.modalities)}"
            )
        for name, value in fitting.items():
            if value.shape != wanted[name].shape:
                raise ConfigError(
                    f"--init {folder}: {name} is {tuple(value.shape)} there and "
                    f"{tuple(wanted[name].shape)} here; `model` must agree with "
                    f"{folder}/config.yaml in that part"
                )
        new = {name: value for name, value in fitting.items() if name not in taken}
        taken.update(new)
        logger.info("%d of %d tensors from %s", len(new), len(wanted), folder)
    model.load_state_dict({**wanted, **taken})
    return len(taken)


def weights_of(
    folder: str | Path,
    model: SpeechModel,
    tokenizer: Tokenizer,
    allow: Iterable[str],
    renew_classifier: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a model directory under the names that they would have in `model`."""
    if "model" not in read_config(folder):
        raise ConfigError(f"--init {folder}: its config.yaml has no section `model`")
    source = load_model(folder, allow)
    weights = source.state_dict()
    if isinstance(source.decoder, TransformerDecoder) and both_ways(model):
        weights = renamed(weights, "decoder.", "decoder.left.")
    elif both_ways(source) and isinstance(model.decoder, TransformerDecoder):
        weights = renamed(weights, "decoder.left.", "decoder.")
    if len(source.modalities) == 1 and len(model.modalities) > 1:
        heads = {k: v for k, v in weights.items() if k.startswith("ctc.")}
        weights.update(renamed(heads, "ctc.", f"stream_ctc.{source.modalities[0]}."))
    fused = len(source.modalities) != len(model.modalities)
    if fused and source.output_size != model.output_size:
        logger.warning(
            "%s has hidden frames of width %d, here they are %d wide: CTC head and decoder begin "
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
        weights = mapped(weights, model.state_dict(), theirs, tokenizer.tokens)
        common = len(set(theirs) & set(tokenizer.tokens))
        logger.warning(
            "%s has other tokens: the classifier is taken over for %d of %d and begins anew for "
            "the rest", folder, common, tokenizer.vocab_size,
        )  # fmt: skip
    return weights


def mapped(
    weights: dict[str, Tensor], new: dict[str, Tensor], theirs: list[str], ours: list[str]
) -> dict[str, Tensor]:
    """A classifier's weights for tokens at other ids; `new` ones for tokens that it did not have.

    Args:
        weights: of a model of the tokens `theirs`.
        new: those that a model of the tokens `ours` begins with.
        theirs: tokens at their ids.
        ours: likewise.
    """
    place = {token: i for i, token in enumerate(theirs)}
    pairs = [(i, place[token]) for i, token in enumerate(ours) if token in place]
    here, there = (list(ids) for ids in zip(*pairs, strict=True))
    found = dict(weights)
    for name, value in weights.items():
        axis = 1 if COLUMNS.fullmatch(name) else 0 if ROWS.fullmatch(name) else None
        if axis is None or name not in new:
            continue
        other = new[name].clone().transpose(0, axis)
        value = value.transpose(0, axis)
        if other.shape[1:] == value.shape[1:]:  # else it does not fit, which is said elsewhere
            other[here] = value[there]
            found[name] = other.transpose(0, axis).contiguous()
    return found


def both_ways(model: SpeechModel) -> bool:
    """Whether its decoder reads in both directions."""
    return isinstance(model.decoder, BidirectionalDecoder)


def renamed(weights: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """With `new` in place of `old` where a name begins with it."""
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: value
        for name, value in weights.items()
    }
