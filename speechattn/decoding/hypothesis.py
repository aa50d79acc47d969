"""What a search returns."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hypothesis:
    """One reading of an utterance.

    Attributes:
        tokens: U ids without blank and <sos/eos>.
        score: what the search ranked by, a weighted sum of `scores`.
        scores: by scorer, before weighting: natural logs for `decoder`, `reverse` and `ctc` (of
            several models `decoder.NAME` and so on), a count for `length`.
        frames: the encoder's frame in which each token was said, of a search that knows; else None.
        confidences: 0 to 1, how probable each token is by all that the search kept, of a search
            that knows; else None.
    """

    tokens: list[int]
    score: float
    scores: dict[str, float] = field(default_factory=dict)
    frames: list[int] | None = None
    confidences: list[float] | None = None
