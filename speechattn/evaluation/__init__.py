"""Evaluation: error rates with intervals and alignments, and the HTML report."""

from speechattn.evaluation.bootstrap import BootstrapOptions
from speechattn.evaluation.error_rate import (
    ErrorCounts,
    ScoreReport,
    UtteranceScore,
    score,
)
from speechattn.evaluation.score_files import score_both, score_files
from speechattn.evaluation.tables import Table, read_table, write_table
from speechattn.evaluation.text import TextNormalization, normalize, split_units

__all__ = [
    "BootstrapOptions",
    "ErrorCounts",
    "ScoreReport",
    "Table",
    "TextNormalization",
    "UtteranceScore",
    "normalize",
    "read_table",
    "score",
    "score_both",
    "score_files",
    "split_units",
    "write_table",
]
