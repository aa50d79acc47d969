"""Starting from trained models: fine-tuning, and streams of an audio-visual model.

Ma et al. (2102.06657) begin their audio-visual model with the encoders of their audio and their
visual model; the CNVSRC systems go from one corpus to the next.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from speechattn.data.tokenizer import Tokenizer
from speechattn.decoders import BidirectionalDecoder, TransformerDecoder
from speechattn.errors import ConfigError
from speechattn.model import SpeechModel
from speechattn.model_dir import load_model, read_config

logger = logging.getLogger(__name__)

# Parts of tokens, of use only where the tokens are the same: heads and decoder, and what
# self-conditioning makes of a head's posteriors.
HEADS = ("ctc.", "stream_ctc.", "decoder.")
CONDITIONING = ".encoder.conditioning."


def initialise(
    model: SpeechModel,
    folders: Iterable[str | Path],
    tokenizer: Tokenizer,
    allow: Iterable[str] = (),
) -> int:
    """Takes over the weights of trained models.

    What has the same name is taken from the first model that has it; the CTC head of a model of
    one modality also becomes the head of that stream in an audio-visual one, and a left-to-right
    decoder the left-to-right half of a bidirectional one, or the other way round. Heads and decoder
    are taken only from a model of the same tokens and, where one is audio-visual and the other not,
    of hidden frames as wide; they begin anew otherwise.

    Args:
        model: what will be trained; changed in place.
        folders: model directories, the most important first.
        tokenizer: the tokens of `model`.
        allow: packages beside this one whose classes the models may name.

    Returns:
        How many of the model's tensors were taken over.

    Raises:
        ConfigError: a part of the same name has another shape, or a model has nothing to give.
    """
    wanted = model.state_dict()
    taken: dict[str, Tensor] = {}
    for folder in folders:
        given = weights_of(folder, model, tokenizer, allow)
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
    folder: str | Path, model: SpeechModel, tokenizer: Tokenizer, allow: Iterable[str]
) -> dict[str, Tensor]:
    """The tensors of a model directory under the names that they would have in `model`."""
    if "model" not in read_config(folder):
        raise ConfigError(f"--init {folder}: its config.yaml has no section `model`")
    source = load_model(folder, allow)
    weights = source.state_dict()
    if Tokenizer.load(folder).tokens != tokenizer.tokens:
        logger.warning("%s has other tokens: heads and decoder begin anew", folder)
        return {
            k: v for k, v in weights.items() if not k.startswith(HEADS) and CONDITIONING not in k
        }
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
    return weights


def both_ways(model: SpeechModel) -> bool:
    """Whether its decoder reads in both directions."""
    return isinstance(model.decoder, BidirectionalDecoder)


def renamed(weights: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """With `new` in place of `old` where a name begins with it."""
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: value
        for name, value in weights.items()
    }
