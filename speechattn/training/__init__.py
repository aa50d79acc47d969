"""Training: options, schedules, the Lightning module, resuming, averaging."""

from speechattn.training.fit import average, set_noise, train
from speechattn.training.options import TrainingOptions

__all__ = ["TrainingOptions", "average", "set_noise", "train"]
