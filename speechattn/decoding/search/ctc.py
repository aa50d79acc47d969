"""Searches by CTC alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from speechattn.decoding.ctc import ctc_greedy
from speechattn.decoding.ctc_beam import ctc_beam_search
from speechattn.decoding.fusion import Fusion
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.search.base import FusedSearch, Search, SearchedModel
from speechattn.decoding.streaming.base import StreamLimits, StreamSearch
from speechattn.decoding.streaming.beam import PrefixBeamStream
from speechattn.decoding.streaming.greedy import GreedyStream
from speechattn.errors import require
from speechattn.model.output import ModelOutput


@dataclass(frozen=True, kw_only=True)
class CtcGreedySearch(Search):
    """The best label of each frame by CTC. It has no options."""

    streams: ClassVar[bool] = True

    def find(self, outputs: Sequence[ModelOutput], fusion: Fusion) -> list[list[Hypothesis]]:
        (output,) = outputs
        return [[h] for h in ctc_greedy(output.log_probs, output.lengths)]

    def start_stream(
        self, model: SearchedModel, device: torch.device, fusion: Fusion, limits: StreamLimits
    ) -> StreamSearch:
        return GreedyStream()


@dataclass(frozen=True, kw_only=True)
class CtcBeamSearch(FusedSearch):
    """The most probable token sequences by CTC, with language models and hot words.

    Attributes:
        frame_units: units by which prefixes may grow in a frame, the most probable ones; 0 for
            all.
        blank_skip: frames whose blank is more probable than this are skipped; 1 for none.
    """

    streams: ClassVar[bool] = True

    frame_units: int = 20
    blank_skip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.frame_units >= 0, "search.frame_units", self.frame_units, "0 or more")
        in_range = 0 < self.blank_skip <= 1
        require(in_range, "search.blank_skip", self.blank_skip, "above 0 and at most 1")

    def first_pass(
        self, outputs: Sequence[ModelOutput], fusion: Fusion, nbest: int
    ) -> list[list[Hypothesis]]:
        (output,) = outputs
        return ctc_beam_search(
            output.log_probs,
            output.lengths,
            beam_size=self.beam_size,
            nbest=nbest,
            frame_units=self.frame_units,
            blank_skip=self.blank_skip,
            length_bonus=self.length_bonus,
            scorers=self.scorers(outputs, fusion),
        )

    def start_stream(
        self, model: SearchedModel, device: torch.device, fusion: Fusion, limits: StreamLimits
    ) -> StreamSearch:
        scorers = self.scorers_of(1, fusion)
        return PrefixBeamStream(
            model.vocab_size,
            device,
            beam_size=self.beam_size,
            frame_units=self.frame_units,
            blank_skip=self.blank_skip,
            length_bonus=self.length_bonus,
            scorers=scorers,
            margin=limits.margin,
            # A language model may change its mind about older tokens.
            settle=limits.settle_frames(2.0 if scorers else 0.5),
            longest=limits.pending_frames,
        )
