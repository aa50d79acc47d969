"""From manifests to training batches.

Legend: B utterances of a batch, N samples (or utterances of a manifest), T frames, U tokens, H and
W height and width of the crops, R recordings of joined utterances.
"""

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
