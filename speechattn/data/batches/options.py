"""The options of training batches."""

from dataclasses import dataclass

from speechattn.data.augment import ClipTransform


@dataclass(frozen=True)
class DataOptions:
    """How training batches are made.

    Attributes:
        batch_seconds: cap on a batch's padded size, in seconds.
        max_items: at most so many utterances in a batch.
        min_seconds: shorter utterances are left out of training.
        max_seconds: longer ones are too.
        join_seconds: training utterances are joined in random order to recordings of up to so
            many seconds, anew each epoch (see `joined`); 0 for none. A model of short clips needs
            it for the times of words and for long files.
        join_chance: that a recording may have more than one utterance, 0..1.
        trim_chance: that a joined recording begins within its first utterance and ends within its
            last, as windows of a long file do; only where the cuts say when words were said.
        scale: side in pixels of the middle of the stored crops that is used (see `RoiOptions`);
            None for all of them.
        num_workers: loading processes.
        audio_transforms: applied to the sound of training utterances, in order; SpeedPerturb
            changes the lips alike.
        noise: file that every AddNoise without a file of its own mixes in; without one these are
            dropped, with a warning.
        video_transforms: applied to their crops, in order; they must leave squares of the model's
            size, as crops without a size of their own do.
    """

    batch_seconds: float = 60.0
    max_items: int = 64
    min_seconds: float = 0.0
    max_seconds: float = 30.0
    join_seconds: float = 0.0
    join_chance: float = 0.75
    trim_chance: float = 0.5
    scale: int | None = None
    num_workers: int = 1
    audio_transforms: list[ClipTransform] | None = None
    noise: str | None = None
    video_transforms: list[ClipTransform] | None = None
