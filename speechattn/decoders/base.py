"""What every decoder is, and the state of its steps."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from speechattn.attention.cross import CrossState, Keys
from speechattn.decoders.tree import TokenTree


@dataclass(frozen=True)
class DecoderState:
    """The past of a step: never changed in place, so a state may be stepped twice.

    Hypotheses of one utterance are adjacent and each utterance has as many as the others:
    hypothesis n attends to row n // (N / B) of the memory, which is held once an utterance.

    Attributes:
        memory: per layer, the keys and values of cross-attention, or what it has in their place,
            each (B, ...).
        memory_mask: (B, 1, 1, T) bool, True where a frame is real; None if all are.
        tree: the tokens fed so far.
        cross_states: per layer, the state of each hypothesis's cross-attention, each (N, ...), for
            mechanisms that depend on where they attended before.
    """

    memory: tuple[Keys, ...]
    memory_mask: Tensor | None
    tree: TokenTree
    cross_states: tuple[CrossState, ...] = ()

    @property
    def hypotheses(self) -> int:
        """Return N."""
        return self.tree.hypotheses

    @property
    def utterances(self) -> int:
        """Return B."""
        return self.tree.utterances

    @property
    def tokens(self) -> int:
        """Return U, the tokens fed so far."""
        return self.tree.depth

    def select(self, index: Tensor) -> "DecoderState":
        """Reorder, drop or multiply hypotheses.

        Utterances of which nothing is selected leave the memory. While every run of hypotheses
        of one utterance is equally long the memory stays shared; otherwise it is copied, one row
        for each hypothesis.

        Args:
            index: (M,) int64, each in [0, N).

        Returns:
            A state of M hypotheses, the m-th continuing hypothesis index[m].
        """
        tree, rows = self.tree.select(index)
        cross_states = _rows(self.cross_states, index)
        if rows is None:
            return replace(self, tree=tree, cross_states=cross_states)
        mask = None if self.memory_mask is None else self.memory_mask.index_select(0, rows)
        return DecoderState(_rows(self.memory, rows), mask, tree, cross_states)


def _rows(layers: tuple[tuple[Tensor, ...], ...], index: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    return tuple(tuple(x.index_select(0, index) for x in layer) for layer in layers)


class Decoder(nn.Module):
    """Predicts the next token from the tokens so far and the encoder's output, the memory.

    Tokens belong to N sequences, N a multiple of the memory's B: those that attend to the same
    row are adjacent, as in `DecoderState`. In training N is B.

    Attributes:
        vocab_size: V; <sos/eos> is V - 1.
        memory_size: width of the memory; None for any.
        width: D.
    """

    vocab_size: int
    memory_size: int | None = None
    width: int

    def forward(
        self, tokens: Tensor, token_lengths: Tensor, memory: Tensor, memory_lengths: Tensor
    ) -> Tensor:
        """Compute the logits of the next token after each token.

        Args:
            tokens: (N, U) int64, starting with <sos>; any value beyond a sequence's length.
            token_lengths: (N,) int64.
            memory: (B, T, memory_size).
            memory_lengths: (B,) int64, each at least 1.

        Returns:
            (N, U, V); what stands beyond a sequence's length means nothing.
        """
        raise NotImplementedError

    def predict_tree(
        self, tokens: Tensor, depth: Tensor, path: Tensor, memory: Tensor, memory_lengths: Tensor
    ) -> Tensor:
        """Run `forward` on sequences that share their beginnings.

        Args:
            tokens: (B, M) int64, one a node of each utterance's tree, <sos> at its root.
            depth: (B, M) int64, how many tokens stand before each.
            path: (B, M, M) bool, the nodes from the root to each one, itself included.
            memory: (B, T, memory_size).
            memory_lengths: (B,) int64, each at least 1.

        Returns:
            (B, M, V): at each node the logits of the token after it.
        """
        raise NotImplementedError

    def cross_attention(
        self, tokens: Tensor, token_lengths: Tensor, memory: Tensor, memory_lengths: Tensor
    ) -> Tensor:
        """Compute the cross-attention weights of `forward` on the same arguments, with N = B.

        Returns:
            (L, B, H, U, T): each row sums to 1 over real frames and is 0 on padding.
        """
        raise NotImplementedError

    def init_state(self, memory: Tensor, memory_lengths: Tensor) -> DecoderState:
        """Return the state before <sos>, one hypothesis for each row of the memory.

        Args:
            memory: (B, T, memory_size).
            memory_lengths: (B,) int64, each at least 1.
        """
        raise NotImplementedError

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Feed one token to every hypothesis.

        Args:
            token: (N,) int64, <sos> first.
            state: of N hypotheses.

        Returns:
            Log-probabilities of the next token (N, V), and the state with `token` in it.
        """
        raise NotImplementedError
