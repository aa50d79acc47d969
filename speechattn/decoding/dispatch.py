"""`decode`: from the encoder's output to hypotheses, by the method that the options name."""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from speechattn.decoders import BidirectionalDecoder, Decoder
from speechattn.decoding.ctc import ctc_greedy
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.joint import joint_search
from speechattn.decoding.options import DecodeOptions
from speechattn.decoding.rescoring import rescore
from speechattn.errors import ConfigError


class Decodable(Protocol):
    """What `decode` needs of a model, which is in evaluation mode."""

    decoder: Decoder | None

    def ctc_log_probs(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""


def check_options(model: Decodable, options: DecodeOptions) -> None:
    """Whether a model can be decoded so; cheap, for a check before hours of work.

    Raises:
        ConfigError: it names the option and what the model lacks for it.
    """
    if options.method == "ctc_greedy":
        return
    if model.decoder is None and ctc_weight(options) < 1:
        raise ConfigError(
            f"decode option method: {options.method} needs a decoder and this model has none; "
            "use ctc_greedy, or joint with ctc_weight 1"
        )
    if options.reverse_weight == 0:
        return
    given = f"decode option reverse_weight: {options.reverse_weight:g}"
    if ctc_weight(options) == 1:
        raise ConfigError(f"{given} needs attention scores, which ctc_weight 1 leaves out")
    if not isinstance(model.decoder, BidirectionalDecoder):
        raise ConfigError(
            f"{given} needs a right-to-left decoder and this model has a "
            f"{type(model.decoder).__name__}; leave it out, or train a BidirectionalDecoder"
        )


def ctc_weight(options: DecodeOptions) -> float:
    """The weight of CTC in the search of the options' method."""
    return 0.0 if options.method == "attention" else options.ctc_weight


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
        ConfigError: the model lacks what the options ask for.
    """
    check_options(model, options)
    if options.method == "ctc_greedy":
        return [[hypothesis] for hypothesis in ctc_greedy(model.ctc_log_probs(hidden), lengths)]
    options = replace(options, ctc_weight=ctc_weight(options))
    heard = (lengths > 0).nonzero()[:, 0]
    results = [[Hypothesis([], 0.0)] for _ in range(len(lengths))]
    if not len(heard):
        return results
    if len(heard) < len(lengths):
        hidden, lengths = hidden[heard], lengths[heard]
    hidden = hidden[:, : int(lengths.max())]
    log_probs = model.ctc_log_probs(hidden) if options.ctc_weight > 0 else None
    if options.reverse_weight > 0:
        wide = replace(options, nbest=max(options.nbest, options.beam_size))
        found = joint_search(model.decoder, log_probs, hidden, lengths, wide)
        attention_weight = 1 - options.ctc_weight
        found = rescore(
            model.decoder, found, hidden, lengths, attention_weight, options.reverse_weight
        )
        found = [hypotheses[: options.nbest] for hypotheses in found]
    else:
        found = joint_search(model.decoder, log_probs, hidden, lengths, options)
    for row, hypotheses in zip(heard.tolist(), found, strict=True):
        results[row] = hypotheses
    return results
