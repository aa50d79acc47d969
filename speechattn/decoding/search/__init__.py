"""Searches: components that a configuration names, each with its own options.

    search: {class_path: JointSearch, init_args: {beam_size: 20}}

To add one, derive from `Search` (or `NbestSearch`, `FusedSearch`) and write `find`.
"""

from speechattn.decoding.search.base import FusedSearch, NbestSearch, Search
from speechattn.decoding.search.ctc import CtcBeamSearch, CtcGreedySearch
from speechattn.decoding.search.graph import GraphSearch
from speechattn.decoding.search.joint import JointSearch
from speechattn.decoding.search.rescoring import CtcRescoringSearch, GraphRescoringSearch
from speechattn.decoding.search.transducer import TransducerBeamSearch, TransducerGreedySearch

__all__ = [
    "CtcBeamSearch",
    "CtcGreedySearch",
    "CtcRescoringSearch",
    "FusedSearch",
    "GraphRescoringSearch",
    "GraphSearch",
    "JointSearch",
    "NbestSearch",
    "Search",
    "TransducerBeamSearch",
    "TransducerGreedySearch",
]
