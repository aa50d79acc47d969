"""`decode`: from the encoder's output to hypotheses, by the method that the options name."""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from speechattn.decoders import TransformerDecoder
from speechattn.decoding.ctc import ctc_greedy
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.joint import joint_search
from speechattn.decoding.options import DecodeOptions
from speechattn.errors import ConfigError


class Decodable(Protocol):
    """What `decode` needs of a model, which is in evaluation mode."""

    decoder: TransformerDecoder | None

    def ctc_log_probs(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""


@torch.inference_mode()
def decode(
    model: Decodable, hidden: Tensor, lengths: Tensor, options: DecodeOptions
) -> list[list[Hypothesis]]:
    """Reads a batch of utterances; each gives what it gives alone.

    Args:
        model: in evaluation mode.
        hidden: (B, T, D), from `model.encode`.
        lengths: (B,) int64; an utterance of no frames gives one empty hypothesis.
        options: which search, and how.

    Returns:
        For each utterance at least one hypothesis, best first.

    Raises:
        ConfigError: the method needs a decoder and the model has none.
    """
    if options.method == "ctc_greedy":
        return [[hypothesis] for hypothesis in ctc_greedy(model.ctc_log_probs(hidden), lengths)]
    ctc_weight = 0.0 if options.method == "attention" else options.ctc_weight
    if model.decoder is None and ctc_weight < 1:
        raise ConfigError(
            f"decode option method: {options.method} needs a decoder and this model has none; "
            "use ctc_greedy, or joint with ctc_weight 1"
        )
    heard = (lengths > 0).nonzero()[:, 0]
    results = [[Hypothesis([], 0.0)] for _ in range(len(lengths))]
    if not len(heard):
        return results
    if len(heard) < len(lengths):
        hidden, lengths = hidden[heard], lengths[heard]
    hidden = hidden[:, : int(lengths.max())]
    log_probs = model.ctc_log_probs(hidden) if ctc_weight > 0 else None
    options = replace(options, ctc_weight=ctc_weight)
    found = joint_search(model.decoder, log_probs, hidden, lengths, options)
    for row, hypotheses in zip(heard.tolist(), found, strict=True):
        results[row] = hypotheses
    return results
