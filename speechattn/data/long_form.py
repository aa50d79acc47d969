"""LongFormOptions: how long files are cut into windows."""

from dataclasses import dataclass

from speechattn.errors import require


@dataclass(frozen=True)
class LongFormOptions:
    """How long files are cut into windows.

    Attributes:
        window_seconds: length of a window, rounded to hidden frames. Best near what the model was
            trained on.
        overlap_seconds: that two windows share, at most half of a window. What stands in the
            middle of it has half of this as context on either side.
        batch_size: windows that are decoded together.
        at_silence: ends a window within its last `overlap_seconds` where the sound is quiet for
            long enough, and starts the next one there, without overlap; only where it is not do
            the two overlap. For a model without sound, all do.
        silence_seconds: how long it has to be quiet for that.
        max_seconds: files up to this are recognised whole.
    """

    window_seconds: float = 20.0
    overlap_seconds: float = 4.0
    batch_size: int = 4
    at_silence: bool = False
    silence_seconds: float = 0.3
    max_seconds: float = 30.0

    def __post_init__(self):
        half = 0 < self.overlap_seconds <= self.window_seconds / 2
        within = 0 < self.silence_seconds <= self.overlap_seconds
        for good, name, wanted in (
            (self.window_seconds > 0, "window_seconds", "above 0"),
            (half, "overlap_seconds", "above 0 and at most half of a window"),
            (self.batch_size >= 1, "batch_size", "at least 1"),
            (within, "silence_seconds", "above 0 and at most the overlap"),
            (self.max_seconds >= self.window_seconds, "max_seconds", "at least window_seconds"),
        ):
            require(good, f"long_form.{name}", getattr(self, name), wanted)
