"""Starting from trained models: fine-tuning, and streams of an audio-visual model.

Ma et al. (2102.06657) begin their audio-visual model with the encoders of their audio and their
visual model; the CNVSRC systems go from one corpus to the next.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from speechattn.data.tokenizer import Tokenizer
from speechattn.errors import ConfigError
from speechattn.model import SpeechModel
from speechattn.model_dir import load_model, read_config

logger = logging.getLogger(__name__)

# Parts with a row for each token: of use only where the tokens are the same.
OF_TOKENS = ("ctc.", "stream_ctc.", "decoder.")


def initialise(
    model: SpeechModel,
    folders: Iterable[str | Path],
    tokenizer: Tokenizer,
    allow: Iterable[str] = (),
) -> int:
    """Takes over the weights of trained models.

    What has the same name is taken from the first model that has it; the CTC head of a model of
    one modality also becomes the head of that stream in an audio-visual one. Heads and decoder are
    taken only from a model of the same tokens, and begin anew otherwise.

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
        return {k: v for k, v in weights.items() if not k.startswith(OF_TOKENS)}
    if len(source.modalities) == 1 and len(model.modalities) > 1:
        stream = f"stream_ctc.{source.modalities[0]}."
        heads = {k: v for k, v in weights.items() if k.startswith("ctc.")}
        weights.update({stream + k.removeprefix("ctc."): v for k, v in heads.items()})
    return weights
