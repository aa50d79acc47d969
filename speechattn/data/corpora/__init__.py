"""Corpora into Lhotse manifests, one module a corpus.

Each has `prepare_<name>(corpus_dir, output_dir) -> {split: CutSet path}`.
"""

from speechattn.data.corpora.cnvsrc import prepare_cnvsrc
from speechattn.data.corpora.grid import prepare_grid
from speechattn.data.corpora.report import read_summary
from speechattn.data.corpora.tsv import prepare_tsv

__all__ = ["prepare_cnvsrc", "prepare_grid", "prepare_tsv", "read_summary"]
