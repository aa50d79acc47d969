"""Predictors of a transducer: networks that read the tokens so far and nothing else.

Tokens are fed after a blank, which stands for the start.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from speechattn.errors import ConfigError
from speechattn.units import BLANK

# The state of N hypotheses: tensors (N, ...), never changed in place.
PredictorState = tuple[Tensor, ...]


class Predictor(nn.Module):
    """Reads tokens, blank first, and predicts what comes after each.

    Attributes:
        vocab_size: V.
        width: D.
    """

    vocab_size: int
    width: int

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict before the first token and after each.

        Args:
            tokens: (B, U) int64; whatever stands beyond an item's tokens changes nothing before
                it.

        Returns:
            (B, U + 1, D).
        """
        raise NotImplementedError

    def init_state(self, batch: int) -> PredictorState:
        """Return the state of N = `batch` hypotheses before the blank that starts them."""
        raise NotImplementedError

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """Feed one token to every hypothesis.

        Args:
            tokens: (N,) int64, blank first.
            state: of N hypotheses.

        Returns:
            (N, D), and the state with `tokens` in it.
        """
        raise NotImplementedError

    def select(self, state: PredictorState, index: Tensor) -> PredictorState:
        """Reorder, drop or multiply hypotheses: the m-th continues index[m], (M,) int64."""
        return tuple(x.index_select(0, index) for x in state)


class StatelessPredictor(Predictor):
    """An embedding and one convolution over the last few tokens (Ghodsi et al. 2020).

    "RNN-Transducer with Stateless Prediction Network", with icefall's convolution in groups of four
    channels and ReLU. Blanks stand before the first token, as many as the convolution reads.

    Args:
        vocab_size: V.
        width: D, a multiple of 4.
        context: tokens that are read, at least 1; 1 is the embedding alone, a bigram.
    """

    def __init__(self, vocab_size: int, width: int, context: int = 2):
        super().__init__()
        if width % 4 or width < 4:
            raise ConfigError(f"width of a StatelessPredictor is a multiple of 4, not {width}")
        if context < 1:
            raise ConfigError(f"context is 1 token at least, not {context}")
        self.vocab_size, self.width, self.context = vocab_size, width, context
        self.embedding = nn.Embedding(vocab_size, width)
        self.convolution = None
        if context > 1:
            self.convolution = nn.Conv1d(width, width, context, groups=width // 4, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self._read(pad(tokens, (self.context, 0), value=BLANK))

    def init_state(self, batch: int) -> PredictorState:
        device = self.embedding.weight.device
        return (torch.full((batch, self.context - 1), BLANK, dtype=torch.int64, device=device),)

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        window = torch.cat([state[0], tokens[:, None]], 1)  # (N, context)
        return self._read(window)[:, 0], (window[:, 1:],)

    def _read(self, tokens: Tensor) -> Tensor:
        """Map (N, U) to (N, U - context + 1, D); padding may be -1, which no embedding has."""
        x = self.embedding(tokens.clamp(min=0))
        if self.convolution is not None:
            x = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        return x.relu()


class LstmPredictor(Predictor):
    """An LSTM over all the tokens so far (Graves 2012, 1211.3711).

    Args:
        vocab_size: V.
        width: D, of the embedding too.
        layers: L.
        dropout: of the embedding, between layers and of the output, in [0, 1).
        zero_blank: embed the blank that starts a text as zeros rather than as a learnt vector.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        layers: int = 1,
        dropout: float = 0.0,
        *,
        zero_blank: bool = False,
    ):
        super().__init__()
        if layers < 1:
            raise ConfigError(f"layers is 1 at least, not {layers}")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"dropout has to be in [0, 1), got {dropout!r}")
        self.vocab_size, self.width, self.layers = vocab_size, width, layers
        self.embedding = nn.Embedding(vocab_size, width, padding_idx=BLANK if zero_blank else None)
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.lstm(self._embed(pad(tokens, (1, 0), value=BLANK)))
        return self.dropout(x)

    def init_state(self, batch: int) -> PredictorState:
        zeros = self.embedding.weight.new_zeros(batch, self.layers, self.width)
        return zeros, zeros

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        before = tuple(x.transpose(0, 1).contiguous() for x in state)  # (L, N, D)
        x, after = self.lstm(self._embed(tokens[:, None]), before)
        return self.dropout(x[:, 0]), tuple(x.transpose(0, 1) for x in after)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.embedding(tokens.clamp(min=0)))
