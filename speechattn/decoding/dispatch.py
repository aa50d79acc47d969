"""`decode`: from what models make of a batch to hypotheses, by the method that the options name."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from speechattn.decoders import BidirectionalDecoder, Decoder, Transducer
from speechattn.decoding.ctc import ctc_greedy
from speechattn.decoding.ctc_beam import ctc_beam_search
from speechattn.decoding.fst.decode import graph_search
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.joint import joint_search
from speechattn.decoding.options import GRAPH, DecodeOptions
from speechattn.decoding.rescoring import add_decoder, add_lm, least_risk, rescore
from speechattn.decoding.shallow_fusion import NOTHING, ShallowFusion
from speechattn.decoding.transducer import transducer_search
from speechattn.errors import ConfigError
from speechattn.model.output import ModelOutput

TRANSDUCER = ("transducer_greedy", "transducer_beam")
WITHOUT_DECODER = ("ctc_greedy", "ctc_beam", "ctc_graph", *TRANSDUCER)
# Ranked anew with the decoder.
RESCORED = ("ctc_rescore", "ctc_graph_rescore")


def check_options(
    decoders: Sequence[Decoder | None],
    options: DecodeOptions,
    transducers: Sequence[Transducer | None] = (),
) -> None:
    """Whether models can be decoded so; cheap, for a check before hours of work.

    Args:
        decoders: of each model that is searched.
        options: how.
        transducers: of each model; may be left out where none has one.

    Raises:
        ConfigError: it names the option and what a model lacks for it.
    """
    if options.method.startswith(("ctc_", "transducer_")):
        if len(decoders) > 1:
            raise ConfigError(
                f"decode option method: {options.method} reads one model and these are "
                f"{len(decoders)}; use joint"
            )
        if options.internal_lm_weight > 0:
            raise ConfigError(
                f"decode option internal_lm_weight: {options.internal_lm_weight:g} is for searches "
                f"with the attention decoder, and {options.method} has none"
            )
    if options.method in TRANSDUCER and None in (transducers or [None]):
        raise ConfigError(
            f"decode option method: {options.method} needs a transducer and this model has none"
        )
    if options.method in WITHOUT_DECODER:
        return
    if None in decoders and ctc_weight(options) < 1:
        raise ConfigError(
            f"decode option method: {options.method} needs a decoder and this model has none; "
            "use ctc_greedy, or joint with ctc_weight 1"
        )
    if options.internal_lm_weight > 0 and ctc_weight(options) == 1:
        raise ConfigError(
            f"decode option internal_lm_weight: {options.internal_lm_weight:g} needs attention "
            "scores, which ctc_weight 1 leaves out"
        )
    if options.reverse_weight == 0:
        return
    given = f"decode option reverse_weight: {options.reverse_weight:g}"
    if ctc_weight(options) == 1:
        raise ConfigError(f"{given} needs attention scores, which ctc_weight 1 leaves out")
    for decoder in decoders:
        if not isinstance(decoder, BidirectionalDecoder):
            raise ConfigError(
                f"{given} needs a right-to-left decoder and this model has a "
                f"{type(decoder).__name__}; leave it out, or train a BidirectionalDecoder"
            )


def ctc_weight(options: DecodeOptions) -> float:
    """The weight of CTC in the search of the options' method."""
    return 0.0 if options.method == "attention" else options.ctc_weight


@torch.inference_mode()
def decode(
    evidence: Sequence[ModelOutput], options: DecodeOptions, fusion: ShallowFusion = NOTHING
) -> list[list[Hypothesis]]:
    """Read a batch of utterances; each gives what it gives alone.

    Args:
        evidence: what one or more models made of the batch. An utterance of no frames in one of
            them gives one empty hypothesis.
        options: which search, and how.
        fusion: language models and hot words; greedy search does not look at them.

    Returns:
        For each utterance at least one hypothesis, best first.

    Raises:
        ConfigError: a model lacks what the options ask for.
    """
    check_options([e.decoder for e in evidence], options, [e.transducer for e in evidence])
    fusion.check(options, evidence[0].log_probs.size(-1))
    options = replace(options, ctc_weight=ctc_weight(options))
    lengths = torch.stack([e.lengths for e in evidence])
    heard = (lengths > 0).all(0).nonzero()[:, 0]
    results = [[Hypothesis([], 0.0)] for _ in range(lengths.size(1))]
    if not len(heard):
        return results
    evidence = [e.rows(heard) for e in evidence]
    wide = options
    if options.method in RESCORED or (
        options.reverse_weight or options.lm_rescore_weight or options.risk_scale
    ):
        wide = replace(options, nbest=max(options.nbest, options.beam_size))
    found = second_pass(evidence, first_pass(evidence, wide, fusion), options, fusion)
    for row, hypotheses in zip(heard.tolist(), found, strict=True):
        results[row] = hypotheses[: options.nbest]
    return results


def first_pass(
    evidence: Sequence[ModelOutput], options: DecodeOptions, fusion: ShallowFusion
) -> list[list[Hypothesis]]:
    """The search, each utterance with a frame at least."""
    if options.method in ("joint", "attention"):
        return joint_search(evidence, options, fusion.scorers(options, evidence))
    (e,) = evidence
    if options.method in TRANSDUCER:
        return transducer_search(e, options, fusion.scorers(options, evidence))
    if options.method == "ctc_greedy":
        return [[h] for h in ctc_greedy(e.log_probs, e.lengths)]
    if options.method in GRAPH:
        return graph_search(e.log_probs, e.lengths, fusion.graph, options)
    return ctc_beam_search(
        e.log_probs,
        e.lengths,
        options.beam_size,
        options.nbest,
        options.frame_units,
        options.blank_skip,
        options.length_bonus,
        fusion.scorers(options, evidence),
    )


def second_pass(
    evidence: Sequence[ModelOutput],
    nbest: list[list[Hypothesis]],
    options: DecodeOptions,
    fusion: ShallowFusion,
) -> list[list[Hypothesis]]:
    """What ranks the search's hypotheses anew."""
    if options.method in RESCORED:
        nbest = add_decoder(evidence[0], nbest, 1 - options.ctc_weight)
    if options.reverse_weight > 0 and options.method not in WITHOUT_DECODER:
        nbest = rescore(evidence, nbest, 1 - options.ctc_weight, options.reverse_weight)
    if options.lm_rescore_weight > 0:
        nbest = add_lm(fusion.lm, nbest, options.lm_rescore_weight)
    if options.risk_scale > 0:
        nbest = least_risk(nbest, options.risk_scale)
    return nbest
