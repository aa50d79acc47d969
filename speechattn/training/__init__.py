"""Training with Lightning: options, tasks, resuming, averaging, word times of a corpus.

Legend: B utterances, T frames, U tokens, V units.
"""

from speechattn.training.averaging import average
from speechattn.training.fit import train
from speechattn.training.options import TrainingOptions

__all__ = ["TrainingOptions", "average", "train"]
