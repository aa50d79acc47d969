"""Searches whose hypotheses the attention decoder ranks anew, as WeNet's rescoring (2102.01547)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from speechattn.decoding.fusion import Fusion
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.rescoring import add_decoder, rescore
from speechattn.decoding.search.base import NbestSearch, SearchedModel
from speechattn.decoding.search.ctc import CtcBeamSearch
from speechattn.decoding.search.graph import GraphSearch
from speechattn.decoding.search.joint import check_bidirectional, check_whole_hypotheses
from speechattn.model.output import ModelOutput


@dataclass(frozen=True, kw_only=True)
class _AttentionRescoring(NbestSearch):
    needs_decoder: ClassVar[bool] = True
    streams: ClassVar[bool] = False
    has_second_pass = True

    ctc_weight: float = 0.3
    reverse_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_share("ctc_weight")
        self._require_share("reverse_weight")

    def check_model(self, model: SearchedModel) -> None:
        super().check_model(model)
        check_whole_hypotheses(model, "search: rescoring")
        if self.reverse_weight > 0:
            check_bidirectional(model, self.reverse_weight)

    def second_pass(
        self, outputs: Sequence[ModelOutput], found: list[list[Hypothesis]], fusion: Fusion
    ) -> list[list[Hypothesis]]:
        found = add_decoder(outputs[0], found, 1 - self.ctc_weight)
        if self.reverse_weight > 0:
            found = rescore(outputs, found, 1 - self.ctc_weight, self.reverse_weight)
        return super().second_pass(outputs, found, fusion)


@dataclass(frozen=True, kw_only=True)
class CtcRescoringSearch(_AttentionRescoring, CtcBeamSearch):
    """CTC's `beam_size` best sequences, ranked anew with the attention decoder.

    Attributes:
        ctc_weight: share of the CTC score, 0..1; the decoder gets the rest.
        reverse_weight: share of the right-to-left decoder in the attention score, 0..1; needs a
            BidirectionalDecoder.
    """


@dataclass(frozen=True, kw_only=True)
class GraphRescoringSearch(_AttentionRescoring, GraphSearch):
    """The `beam_size` best sentences of a graph, ranked anew with the attention decoder.

    Attributes:
        ctc_weight: share of the CTC score, 0..1; the decoder gets the rest.
        reverse_weight: share of the right-to-left decoder in the attention score, 0..1; needs a
            BidirectionalDecoder.
    """
