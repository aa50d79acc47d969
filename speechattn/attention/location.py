"""Location-relative cross-attention: weights follow from the last alignment, not from keys.

Battenberg et al., "Location-Relative Attention Mechanisms for Robust Long-Form Speech Synthesis"
(1910.10288): the weights of a token depend on its own state and on the alignment of the token
before, so they move along the memory whatever it contains, and utterances longer than in training
are no problem. In synthesis text is the memory and each step a frame; here speech is the memory and
each step a token, so a step moves by several frames, and defaults are for that.

Legend: see `speechattn.attention`; n sequences in any order, P alignment parameters of a token.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechattn.attention.cross import CrossAttention, CrossState, Keys, grouped_context
from speechattn.attention.token_softmax import shared_heads
from speechattn.dropout import Dropout


class LocationCrossAttention(CrossAttention):
    """Base of Gaussian mixtures and dynamic convolutions. Each head aligns by itself.

    A subclass defines one step (`parameters_of`, `begin`, `advance`); whole sequences are a loop
    over tokens and trees a loop over depths, unless it overrides `_align` and `_align_tree`.

    Args:
        width: D.
        memory_size: width of the memory.
        heads: H, divides D.
        dropout: of the weights, where values are summed; the alignment itself is not dropped.
        hidden: units of the layer over a token's state; 0 for D.
    """

    patterns = ("causal cross",)

    def __init__(
        self, width: int, memory_size: int, heads: int, dropout: float = 0.0, *, hidden: int = 0
    ):
        super().__init__()
        shared_heads(type(self).__name__, width, heads, 0)
        if hidden < 0:
            raise ValueError(f"{type(self).__name__}: hidden is 0 or a size, not {hidden}")
        self.heads = heads
        self.hidden = nn.Linear(width, hidden or width)
        self.value = nn.Linear(memory_size, width)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def parameters_of(self, x: Tensor) -> Tensor:
        """Return the alignment parameters (..., P) of token states (..., D), float32 at least."""
        raise NotImplementedError

    def begin(self, count: int, values: Tensor) -> CrossState:
        """Return the state of n sequences before their first token, for values (B, H, T, Dh)."""
        raise NotImplementedError

    def advance(
        self, parameters: Tensor, state: CrossState, mask: Tensor | None, frames: int
    ) -> tuple[Tensor, CrossState]:
        """Align one token of n sequences.

        Args:
            parameters: (n, P), from `parameters_of`.
            state: of each sequence.
            mask: (n, T) bool, True where a frame is real; None if all are.
            frames: T.

        Returns:
            The weights (n, H, T), 0 on padding, and the new state.
        """
        raise NotImplementedError

    def keys(self, memory: Tensor) -> Keys:
        """Project (B, T, memory_size) to values alone, (B, H, T, Dh)."""
        return (self.value(memory).unflatten(2, (self.heads, -1)).transpose(1, 2),)

    def forward(self, x: Tensor, keys: Keys, mask: Tensor | None) -> Tensor:
        return self._context(self._align(x, keys[0], mask), keys[0])

    def weights(self, x: Tensor, keys: Keys, mask: Tensor | None) -> Tensor:
        return self._align(x, keys[0], mask).transpose(1, 2)

    def tree(
        self, x: Tensor, path: Tensor, depth: Tensor, keys: Keys, mask: Tensor | None
    ) -> Tensor:
        return self._context(self._align_tree(x, path, depth, keys[0], mask), keys[0])

    def start(self, keys: Keys) -> CrossState:
        return self.begin(len(keys[0]), keys[0])

    def step(
        self, x: Tensor, keys: Keys, mask: Tensor | None, state: CrossState
    ) -> tuple[Tensor, CrossState]:
        parameters, values = self.parameters_of(x).flatten(0, 1), keys[0]  # (N, P)
        mask = each_sequence(mask, len(parameters))
        weights, state = self.advance(parameters, state, mask, values.size(2))
        return self._context(weights.unflatten(0, x.shape[:2]), values), state

    def _context(self, weights: Tensor, values: Tensor) -> Tensor:
        """Sum values by weights (N, U, H, T), and project to (N, U, D)."""
        return self.output(grouped_context(self.dropout(weights).to(values.dtype), values))

    def _align(self, x: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Return the weights of whole sequences, (N, U, D) -> (N, U, H, T)."""
        state = self.begin(len(x), values)
        mask, weights = each_sequence(mask, len(x)), []
        for token in self.parameters_of(x).unbind(1):
            arguments = token, state, mask, values.size(2)
            if torch.is_grad_enabled():
                # Between tokens only the alignment is kept; the rest is computed twice.
                options = {"use_reentrant": False, "preserve_rng_state": False}
                now, state = checkpoint(self.advance, *arguments, **options)
            else:
                now, state = self.advance(*arguments)
            weights.append(now)
        return torch.stack(weights, 1)

    def _align_tree(
        self, x: Tensor, path: Tensor, depth: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Return the weights at each node, (B, M, D) -> (B, M, H, T), a depth at a time."""
        b, m = depth.shape
        parameters, level = self.parameters_of(x).flatten(0, 1), depth.flatten()
        first = torch.arange(0, b * m, m, device=x.device)[:, None]
        before = path & (depth[:, None] == depth[..., None] - 1)
        parent = (before.to(torch.uint8).argmax(2) + first).flatten()  # (B * M,)
        place = torch.zeros_like(parent)  # of a node among those of its depth
        state, order, weights = (), [], []
        for d in range(int(level.max()) + 1):
            at = (level == d).nonzero()[:, 0]
            before = place[parent[at]]
            state = tuple(s[before] for s in state) if d else self.begin(len(at), values)
            rows = None if mask is None else mask[:, 0, 0][at // m]
            now, state = self.advance(parameters[at], state, rows, values.size(2))
            place[at] = torch.arange(len(at), device=x.device)
            order.append(at)
            weights.append(now)
        return torch.cat(weights)[torch.cat(order).argsort()].unflatten(0, (b, m))


def each_sequence(mask: Tensor | None, count: int) -> Tensor | None:
    """Expand the mask (B, 1, 1, T) to each of N sequences, (N, T)."""
    if mask is None:
        return None
    return mask[:, 0, 0].repeat_interleave(count // len(mask), 0)
