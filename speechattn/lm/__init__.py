"""Language models: n-grams and Transformers, their texts, scores and perplexity.

Legend: B utterances or sentences, N hypotheses or sequences, U tokens, V units, D width; in n-gram
models S states (contexts), E arcs (n-grams of two units and more), M n-grams of one order.
"""

from speechattn.lm.backoff import BackoffArcs
from speechattn.lm.directory import build_lm, load_lm, save_lm
from speechattn.lm.ngram import NgramLm
from speechattn.lm.ngram_training import train_ngram
from speechattn.lm.perplexity import Perplexity, lm_perplexity, ngram_perplexity
from speechattn.lm.scorers import InternalLmScorer, LmScorer, NgramScorer
from speechattn.lm.texts import LmBatch, TokenLines, collate_lines, hold_out, read_texts
from speechattn.lm.transformer import TransformerLm, sequence_scores
from speechattn.lm.word_ngram import split_words, train_word_ngram

__all__ = [
    "BackoffArcs",
    "InternalLmScorer",
    "LmBatch",
    "LmScorer",
    "NgramLm",
    "NgramScorer",
    "Perplexity",
    "TokenLines",
    "TransformerLm",
    "build_lm",
    "collate_lines",
    "hold_out",
    "lm_perplexity",
    "load_lm",
    "ngram_perplexity",
    "read_texts",
    "save_lm",
    "sequence_scores",
    "split_words",
    "train_ngram",
    "train_word_ngram",
]
