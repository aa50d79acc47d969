"""ModelOutput: what a search reads of a model for a batch of utterances."""

from dataclasses import dataclass, replace

from torch import Tensor

from speechattn.decoders import Decoder, Transducer
from speechattn.encoders.frame_reducer import FrameReducer


@dataclass(frozen=True)
class ModelOutput:
    """One model's output for B utterances. A search may weigh that of several models.

    Attributes:
        hidden: (B, T, D), the encoder's output.
        lengths: (B,) int64.
        log_probs: (B, T, V), of CTC, blank first and <sos/eos> last.
        decoder: reads `hidden`, in evaluation mode; None for a model without.
        frame_shift: seconds from one frame to the next.
        weight: the model's share of the score.
        name: of the model among several; empty for one alone.
        transducer: reads `hidden` too, in evaluation mode; None for a model without.
        frame_reducer: drops frames before it does; None for none.
    """

    hidden: Tensor
    lengths: Tensor
    log_probs: Tensor
    decoder: Decoder | None = None
    frame_shift: float = 0.04
    weight: float = 1.0
    name: str = ""
    transducer: Transducer | None = None
    frame_reducer: FrameReducer | None = None

    def label(self, part: str) -> str:
        """Return the name of this model's score: `part`, or `part.name` among several models."""
        return f"{part}.{self.name}" if self.name else part

    def rows(self, index: Tensor) -> "ModelOutput":
        """Return the utterances index (M,), with no frames beyond the longest of them."""
        lengths = self.lengths[index]
        t = int(lengths.max())
        hidden, log_probs = self.hidden[index, :t], self.log_probs[index, :t]
        return replace(self, hidden=hidden, lengths=lengths, log_probs=log_probs)
