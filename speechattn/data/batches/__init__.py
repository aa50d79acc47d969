"""From manifests to training batches."""

from speechattn.data.batches.batch import Batch, Item, collate
from speechattn.data.batches.dataset import SpeechDataset, cut_text, open_cuts, read_cuts
from speechattn.data.batches.options import DataOptions
from speechattn.data.batches.sampler import PaddedFrameBatches

__all__ = [
    "Batch",
    "DataOptions",
    "Item",
    "PaddedFrameBatches",
    "SpeechDataset",
    "collate",
    "cut_text",
    "open_cuts",
    "read_cuts",
]
