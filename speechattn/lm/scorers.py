"""Language models as scorers: n-grams, Transformers, and the one inside an attention decoder."""

import torch
from torch import Tensor

from speechattn.decoders import Decoder, DecoderState
from speechattn.decoders.tree import TokenTree
from speechattn.lm.ngram import NgramLm
from speechattn.lm.transformer import TransformerLm


class NgramScorer:
    """An n-gram model as a scorer of all tokens; the state of a hypothesis is one number.

    Args:
        lm: on the device of the search.
        batch: B.
    """

    def __init__(self, lm: NgramLm, batch: int):
        self.lm, self.batch = lm, batch

    def start(self) -> Tensor:
        return torch.zeros(self.batch, dtype=torch.int64, device=self.lm.unit.device)

    def score(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.lm.step(state, token)
        return self.lm.scores(state), state

    def select(self, state: Tensor, index: Tensor) -> Tensor:
        return state[index]


class LmScorer:
    """A Transformer language model as a scorer of all tokens.

    Args:
        lm: of the search's units, in evaluation mode.
        batch: B.
    """

    def __init__(self, lm: TransformerLm, batch: int):
        self.lm, self.batch = lm, batch

    def start(self) -> TokenTree:
        return self.lm.init_state(self.batch)

    def score(self, token: Tensor, state: TokenTree) -> tuple[Tensor, TokenTree]:
        return self.lm.step(token, state)

    def select(self, state: TokenTree, index: Tensor) -> TokenTree:
        tree, _ = state.select(index)
        return tree


class InternalLmScorer:
    """The internal language model of an attention decoder.

    The decoder with its memory set to zero, as in Meng et al., "Internal Language Model Estimation
    for Domain-Adaptive End-to-End Speech Recognition" (2011.01991). All frames of such a memory
    are equal, so one is enough: the attention weights do not matter. (Except for a decoder whose
    attention depends on its last position.)

    It is used with a negative weight, beside a language model of the target domain with a positive
    one. The weighted score has no upper bound, so no running hypothesis can be ruled out by its
    score: the search has to end by length or by end detection.

    Args:
        decoder: in evaluation mode.
        batch: B.
    """

    def __init__(self, decoder: Decoder, batch: int):
        self.decoder, self.batch = decoder, batch

    def start(self) -> DecoderState:
        like = next(self.decoder.parameters())
        memory = like.new_zeros(self.batch, 1, self.decoder.memory_size)
        lengths = torch.ones(self.batch, dtype=torch.int64, device=like.device)
        return self.decoder.init_state(memory, lengths)

    def score(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        return self.decoder.step(token, state)

    def select(self, state: DecoderState, index: Tensor) -> DecoderState:
        return state.select(index)
