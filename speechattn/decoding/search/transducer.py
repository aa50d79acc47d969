"""Searches with a transducer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from speechattn.decoding.fusion import Fusion
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.search.base import FusedSearch, Search
from speechattn.decoding.transducer import transducer_beam, transducer_greedy
from speechattn.errors import require
from speechattn.model.output import ModelOutput


@dataclass(frozen=True, kw_only=True)
class TransducerGreedySearch(Search):
    """The most probable unit of a transducer, again and again.

    Attributes:
        frame_tokens: tokens of a frame at most.
    """

    needs_transducer: ClassVar[bool] = True

    frame_tokens: int = 1

    def __post_init__(self) -> None:
        require(self.frame_tokens >= 1, "search.frame_tokens", self.frame_tokens, "at least 1")

    def find(self, outputs: Sequence[ModelOutput], fusion: Fusion) -> list[list[Hypothesis]]:
        (output,) = outputs
        hidden, lengths, index = reduced(output)
        found = transducer_greedy(output.transducer, hidden, lengths, self.frame_tokens)
        return with_frames([[h] for h in found], index)


@dataclass(frozen=True, kw_only=True)
class TransducerBeamSearch(FusedSearch):
    """A transducer's most probable token sequences, with at most one token a frame."""

    needs_transducer: ClassVar[bool] = True

    def first_pass(
        self, outputs: Sequence[ModelOutput], fusion: Fusion, nbest: int
    ) -> list[list[Hypothesis]]:
        (output,) = outputs
        hidden, lengths, index = reduced(output)
        found = transducer_beam(
            output.transducer,
            hidden,
            lengths,
            beam_size=self.beam_size,
            nbest=nbest,
            length_bonus=self.length_bonus,
            scorers=self.scorers(outputs, fusion),
        )
        return with_frames(found, index)


def reduced(output: ModelOutput) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the frames that the model's reducer leaves, their lengths and places."""
    if output.frame_reducer is None:
        return output.hidden, output.lengths, None
    return output.frame_reducer(output.hidden, output.lengths, output.log_probs)


def with_frames(found: list[list[Hypothesis]], index: Tensor | None) -> list[list[Hypothesis]]:
    """Return the hypotheses with frames counted in the encoder's output."""
    if index is None:
        return found
    return [
        [replace(h, frames=[frames[t] for t in h.frames]) for h in hypotheses]
        for hypotheses, frames in zip(found, index.tolist(), strict=True)
    ]
