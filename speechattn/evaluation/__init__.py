"""Evaluation: error rates with intervals and alignments, and the HTML report."""

from speechattn.evaluation.bootstrap import BootstrapOptions
from speechattn.evaluation.error_rate import (
    ErrorCounts,
    ScoreReport,
    UtteranceScore,
    score,
)
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
