"""JointSearch: beam search over attention decoder and CTC prefix scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from speechattn.decoders import BidirectionalDecoder
from speechattn.decoding.beam_search import beam_search
from speechattn.decoding.ctc import merge_blanks
from speechattn.decoding.fusion import Fusion
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.rescoring import rescore
from speechattn.decoding.scorers import CtcPrefixScorer, DecoderScorer, PartialScorer, Scorer
from speechattn.decoding.search.base import FusedSearch, SearchedModel
from speechattn.errors import ConfigError, require
from speechattn.lm.scorers import InternalLmScorer
from speechattn.model.output import ModelOutput


@dataclass(frozen=True, kw_only=True)
class JointSearch(FusedSearch):
    """Beam search over attention decoder and CTC prefix scores, of one or several models.

    Watanabe et al., "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition" (2017).
    `length_bonus` counts <eos> too, as in ESPnet.

    Attributes:
        ctc_weight: share of the CTC prefix score, 0..1; the decoder gets the rest. 0 is attention
            alone; at 1 the decoder is not used.
        min_length_ratio: no hypothesis has fewer than int(this * frames) tokens.
        max_length_ratio: no hypothesis has more than max(1, int(this * frames)) tokens; 0 for as
            many as there are frames.
        pre_beam_ratio: the int(this * beam_size) tokens of each hypothesis that the decoder ranks
            best get a CTC score; the others are dropped. <eos> always gets one.
        reverse_weight: share of the right-to-left decoder in the attention score of a second pass,
            0..1; needs a BidirectionalDecoder.
        internal_lm_weight: weight at which the attention decoder's own language model is
            subtracted, for use with another language model.
        blank_skip: of consecutive frames whose blank is more probable than this, CTC reads one;
            1 for all frames.
    """

    single_model: ClassVar[bool] = False

    ctc_weight: float = 0.3
    min_length_ratio: float = 0.0
    max_length_ratio: float = 0.0
    pre_beam_ratio: float = 1.5
    reverse_weight: float = 0.0
    internal_lm_weight: float = 0.0
    blank_skip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ctc_weight", "reverse_weight"):
            self._require_share(name)
        for name in ("min_length_ratio", "max_length_ratio", "internal_lm_weight"):
            self._require_weight(name)
        require(self.pre_beam_ratio >= 1, "search.pre_beam_ratio", self.pre_beam_ratio, "1 or more")
        in_range = 0 < self.blank_skip <= 1
        require(in_range, "search.blank_skip", self.blank_skip, "above 0 and at most 1")

    @property
    def has_second_pass(self) -> bool:
        return super().has_second_pass or self.reverse_weight > 0

    def check_model(self, model: SearchedModel) -> None:
        super().check_model(model)
        if self.ctc_weight < 1:
            if None in model.decoders:
                raise ConfigError(
                    "search: JointSearch needs an attention decoder, and this model has none; use "
                    "CtcBeamSearch or CtcGreedySearch, or set search.ctc_weight to 1"
                )
        else:
            for name in ("internal_lm_weight", "reverse_weight"):
                if getattr(self, name) > 0:
                    raise ConfigError(
                        f"search.{name}: {getattr(self, name):g} needs attention scores, which "
                        "search.ctc_weight 1 leaves out"
                    )
        if self.reverse_weight > 0:
            check_bidirectional(model, self.reverse_weight)
        if self.internal_lm_weight > 0:
            check_whole_hypotheses(model, "search.internal_lm_weight")

    def scorers(
        self, outputs: Sequence[ModelOutput], fusion: Fusion
    ) -> dict[str, tuple[Scorer, float]]:
        found = super().scorers(outputs, fusion)
        if self.internal_lm_weight > 0:
            for output in outputs:
                scorer = InternalLmScorer(output.decoder, len(output.lengths))
                weight = -self.internal_lm_weight * output.weight
                found[output.label("internal_lm")] = scorer, weight
        return found

    def first_pass(
        self, outputs: Sequence[ModelOutput], fusion: Fusion, nbest: int
    ) -> list[list[Hypothesis]]:
        full: dict[str, tuple[Scorer, float]] = {}
        partial: dict[str, tuple[PartialScorer, float]] = {}
        for output in outputs:
            if self.ctc_weight < 1:
                scorer = DecoderScorer(output.decoder, output.hidden, output.lengths)
                full[output.label("decoder")] = scorer, output.weight * (1 - self.ctc_weight)
            if self.ctc_weight > 0:
                frames = merge_blanks(output.log_probs, output.lengths, self.blank_skip)
                weight = output.weight * self.ctc_weight
                partial[output.label("ctc")] = CtcPrefixScorer(*frames), weight
        full |= self.scorers(outputs, fusion)
        return beam_search(
            full,
            partial,
            lengths=torch.stack([output.lengths for output in outputs]).amax(0),
            vocab_size=outputs[0].log_probs.size(-1),
            beam_size=self.beam_size,
            nbest=nbest,
            length_bonus=self.length_bonus,
            min_length_ratio=self.min_length_ratio,
            max_length_ratio=self.max_length_ratio,
            pre_beam_ratio=self.pre_beam_ratio,
        )

    def second_pass(
        self, outputs: Sequence[ModelOutput], found: list[list[Hypothesis]], fusion: Fusion
    ) -> list[list[Hypothesis]]:
        if self.reverse_weight > 0:
            found = rescore(outputs, found, 1 - self.ctc_weight, self.reverse_weight)
        return super().second_pass(outputs, found, fusion)


def check_bidirectional(model: SearchedModel, reverse_weight: float) -> None:
    """Check that all decoders have a right-to-left half.

    Raises:
        ConfigError: one has none.
    """
    for decoder in model.decoders:
        if not isinstance(decoder, BidirectionalDecoder):
            raise ConfigError(
                f"search.reverse_weight: {reverse_weight:g} needs a right-to-left decoder, and "
                f"this model has a {type(decoder).__name__}; set it to 0, or train a "
                "BidirectionalDecoder"
            )


def check_whole_hypotheses(model: SearchedModel, what: str) -> None:
    """Check that all decoders take more than one token after another, as exported ones do not.

    Raises:
        ConfigError: one does not.
    """
    if not all(getattr(decoder, "scores_sequences", True) for decoder in model.decoders):
        raise ConfigError(
            f"{what} needs a decoder that scores whole hypotheses, and an exported one takes one "
            "token after another; leave it out, or decode with the model directory"
        )
