"""From encoder output to token sequences: searches, their scorers, alignment in time.

Legend of this package: B utterances, K beam (hypotheses kept for an utterance), H hypotheses held
for an utterance at a step (1 at the start, at most K), N = B * H hypotheses in a batch, those of
an utterance adjacent, S candidates that may extend a hypothesis, T frames, U tokens, V units,
P scorers.

Search (`joint`), scores (`scorers`) and model are apart: the search knows scorers by a protocol
of three methods and never sees a network.
"""

from speechattn.decoding.alignment import (
    TokenTime,
    WordTime,
    hypothesis_times,
    surest_times,
    token_times,
    word_times,
)
from speechattn.decoding.boosting import BoostScorer, ContextGraph
from speechattn.decoding.ctc import AlignmentError, TokenSpan, ctc_forced_align, ctc_greedy
from speechattn.decoding.ctc_beam import ctc_beam_search
from speechattn.decoding.dispatch import check_options, decode
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.joint import beam_search, joint_search
from speechattn.decoding.options import DecodeOptions
from speechattn.decoding.rescoring import rescore
from speechattn.decoding.scorers import CtcPrefixScorer, DecoderScorer, PartialScorer, Scorer
from speechattn.decoding.shallow_fusion import ShallowFusion
from speechattn.decoding.transducer import transducer_beam, transducer_greedy

__all__ = [
    "AlignmentError",
    "BoostScorer",
    "ContextGraph",
    "CtcPrefixScorer",
    "DecodeOptions",
    "DecoderScorer",
    "Hypothesis",
    "PartialScorer",
    "Scorer",
    "ShallowFusion",
    "TokenSpan",
    "TokenTime",
    "WordTime",
    "beam_search",
    "check_options",
    "ctc_beam_search",
    "ctc_forced_align",
    "ctc_greedy",
    "decode",
    "hypothesis_times",
    "joint_search",
    "rescore",
    "surest_times",
    "token_times",
    "transducer_beam",
    "transducer_greedy",
    "word_times",
]
