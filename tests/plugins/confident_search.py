"""A search of a user's own: the best label of each frame, without tokens that are not sure."""

from dataclasses import dataclass, replace

from speechattn.decoding import Hypothesis, Search
from speechattn.decoding.streaming.greedy import GreedyStream


@dataclass(frozen=True, kw_only=True)
class ConfidentSearch(Search):
    """The best labels by CTC whose mean posterior reaches `threshold`, 0..1."""

    streams = True

    threshold: float = 0.5

    def find(self, outputs, fusion):
        (output,) = outputs
        found = []
        for log_probs, length in zip(output.log_probs, output.lengths, strict=True):
            stream = ConfidentStream(self.threshold)
            spans = stream.accept(log_probs[:length]).final + stream.finish()
            found.append([Hypothesis([span.token for span in spans], 0.0)])
        return found

    def start_stream(self, model, device, fusion, limits):
        return ConfidentStream(self.threshold)


class ConfidentStream(GreedyStream):
    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def accept(self, log_probs):
        tokens = super().accept(log_probs)
        return replace(tokens, final=[s for s in tokens.final if s.score >= self.threshold])

    def finish(self):
        return [span for span in super().finish() if span.score >= self.threshold]
