"""Evaluation: error rates, emission delay, fusion of transcripts, and the HTML report.

Legend, for all files: B utterances, M systems that are fused, C columns of a word transition
network, A alternatives of all columns, T frames, U tokens, V units, L layers, H heads.
"""

from speechattn.evaluation.bootstrap import BootstrapOptions
from speechattn.evaluation.error_rate import ErrorCounts, ScoreReport, UtteranceScore, score
from speechattn.evaluation.score_files import score_both, score_files
from speechattn.evaluation.text import TextNormalization, normalize, split_units

__all__ = [
    "BootstrapOptions",
    "ErrorCounts",
    "ScoreReport",
    "TextNormalization",
    "UtteranceScore",
    "normalize",
    "score",
    "score_both",
    "score_files",
    "split_units",
]
