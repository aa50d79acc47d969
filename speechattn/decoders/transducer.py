"""The transducer's head: a predictor, a joiner, and the simple joiner that prunes its lattice."""

from torch import Tensor, nn

from speechattn.decoders.joiner import Joiner
from speechattn.decoders.predictor import Predictor
from speechattn.errors import ConfigError


class Transducer(nn.Module):
    """Reads frames one after the other, and emits a token or none (blank) at each (1211.3711).

    `speechattn.losses.transducer` trains it, `speechattn.decoding.transducer` searches with it.
    Blank is 0 and starts a text too; <sos/eos> is not used.

    Args:
        predictor: reads the tokens so far.
        memory_size: width of the encoder's frames.
        width: D of the joiner.
        vocab_size: V.
        simple: has the linear layers with which `PrunedTransducerLoss` finds its bounds
            (2206.13236). A model that is trained with `FullTransducerLoss` does without.

    Attributes:
        joiner: frames and predictions to logits.
        simple_am: frames to logits, (B, T, memory_size) -> (B, T, V); None if not `simple`.
        simple_lm: predictions to logits, (B, U + 1, predictor.width) -> (B, U + 1, V); likewise.
    """

    def __init__(
        self,
        predictor: Predictor,
        memory_size: int,
        width: int,
        vocab_size: int,
        *,
        simple: bool = True,
    ):
        super().__init__()
        if predictor.vocab_size != vocab_size:
            raise ConfigError(
                f"transducer.predictor.init_args.vocab_size is {predictor.vocab_size}, but the "
                f"transducer has {vocab_size} units"
            )
        self.vocab_size, self.memory_size, self.predictor = vocab_size, memory_size, predictor
        self.joiner = Joiner(memory_size, predictor.width, width, vocab_size)
        self.simple_am = nn.Linear(memory_size, vocab_size) if simple else None
        self.simple_lm = nn.Linear(predictor.width, vocab_size) if simple else None

    def predict(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, U) to predictions (B, U + 1, predictor.width), before and after each."""
        return self.predictor(tokens)
