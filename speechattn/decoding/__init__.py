"""From model outputs to token sequences: searches, their scorers, alignment in time.

Legend of this package: B utterances, K beam (hypotheses kept for an utterance), H hypotheses held
for an utterance at a step (1 at the start, at most K), N = B * H hypotheses in a batch, those of
an utterance adjacent, S candidates that may extend a hypothesis, T frames, U tokens, V units,
P scorers.

`search` has the components that a configuration names, each with its options; the algorithms under
them (`beam_search`, `ctc_beam`, `transducer`, `fst`) know scorers by a protocol of three methods
and never see a network.
"""

from speechattn.decoding.alignment import (
    TokenTime,
    WordTime,
    hypothesis_times,
    surest_times,
    token_times,
    word_times,
)
from speechattn.decoding.beam_search import beam_search
from speechattn.decoding.boosting import BoostScorer, ContextGraph
from speechattn.decoding.ctc import AlignmentError, TokenSpan, ctc_forced_align, ctc_greedy
from speechattn.decoding.ctc_beam import ctc_beam_search
from speechattn.decoding.fusion import NO_FUSION, Fusion
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.scorers import CtcPrefixScorer, DecoderScorer, PartialScorer, Scorer
from speechattn.decoding.search import (
    CtcBeamSearch,
    CtcGreedySearch,
    CtcRescoringSearch,
    FusedSearch,
    GraphRescoringSearch,
    GraphSearch,
    JointSearch,
    NbestSearch,
    Search,
    TransducerBeamSearch,
    TransducerGreedySearch,
)
from speechattn.decoding.transducer import transducer_beam, transducer_greedy

__all__ = [
    "AlignmentError",
    "BoostScorer",
    "ContextGraph",
    "CtcBeamSearch",
    "CtcGreedySearch",
    "CtcPrefixScorer",
    "CtcRescoringSearch",
    "DecoderScorer",
    "FusedSearch",
    "Fusion",
    "GraphRescoringSearch",
    "GraphSearch",
    "Hypothesis",
    "JointSearch",
    "NO_FUSION",
    "NbestSearch",
    "PartialScorer",
    "Scorer",
    "Search",
    "TokenSpan",
    "TokenTime",
    "TransducerBeamSearch",
    "TransducerGreedySearch",
    "WordTime",
    "beam_search",
    "ctc_beam_search",
    "ctc_forced_align",
    "ctc_greedy",
    "hypothesis_times",
    "surest_times",
    "token_times",
    "transducer_beam",
    "transducer_greedy",
    "word_times",
]
