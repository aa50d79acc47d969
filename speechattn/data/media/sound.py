"""Sound as arrays of samples."""

import numpy as np


def fit_audio(audio: np.ndarray, samples: int) -> np.ndarray:
    """Cut sound, or lengthens it with silence, to `samples`: lips and voice then end together."""
    if len(audio) >= samples:
        return audio[:samples]
    return np.pad(audio, (0, samples - len(audio)))
