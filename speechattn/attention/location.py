"""Cross-attention that goes by where it listened last, and never compares with keys.

Battenberg et al., "Location-Relative Attention Mechanisms for Robust Long-Form Speech Synthesis"
(1910.10288): the weights of a token follow from its own state and from the alignment of the token
before, so they move along the memory whatever is in it, and utterances longer than any seen in
training are nothing new. In synthesis text is the memory and each step a frame; here speech is
the memory and each step a token, so a step moves by several frames, and defaults are for that.

Legend: B utterances, N sequences (a multiple of B), n sequences in any order, U tokens, T memory
frames, M nodes, D width, H heads, Dh = D / H. Each head aligns by itself.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechattn.attention.cross import CrossAttention, Heard, Keys, grouped_context
from speechattn.attention.token_softmax import shared_heads
from speechattn.dropout import Dropout


class LocationCrossAttention(CrossAttention):
    """What Gaussian mixtures and dynamic convolutions have in common.

    A subclass says how one step aligns (`read`, `begin`, `advance`); whole sequences are a loop
    over tokens, trees a loop over depths, unless it knows better.

    Args:
        width: D.
        memory_size: width of the memory.
        heads: H, divides D.
        dropout: of the weights, where values are summed; the alignment goes on undisturbed.
        hidden: units of the layer that reads a token's state; 0 for D.
    """

    patterns = ("causal cross",)

    def __init__(
        self, width: int, memory_size: int, heads: int, dropout: float = 0.0, hidden: int = 0
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

    def read(self, x: Tensor) -> Tensor:
        """What a token's state (..., D) says of its alignment, (..., P), in at least float32."""
        raise NotImplementedError

    def begin(self, count: int, values: Tensor) -> Heard:
        """What n sequences remember before their first token; `values` tells T and the device."""
        raise NotImplementedError

    def advance(
        self, said: Tensor, heard: Heard, mask: Tensor | None, frames: int
    ) -> tuple[Tensor, Heard]:
        """One token of n sequences.

        Args:
            said: (n, P), of `read`.
            heard: what each remembers.
            mask: (n, T) bool, True where a frame is real; None if all are.
            frames: T.

        Returns:
            The weights (n, H, T), 0 on padding, and what each remembers now.
        """
        raise NotImplementedError

    def keys(self, memory: Tensor) -> Keys:
        """(B, T, memory_size) -> the values alone, (B, H, T, Dh)."""
        return (self.value(memory).unflatten(2, (self.heads, -1)).transpose(1, 2),)

    def forward(self, x: Tensor, keys: Keys, mask: Tensor | None) -> Tensor:
        return self._context(self._align(x, keys[0], mask), keys[0])

    def weights(self, x: Tensor, keys: Keys, mask: Tensor | None) -> Tensor:
        return self._align(x, keys[0], mask).transpose(1, 2)

    def tree(
        self, x: Tensor, path: Tensor, depth: Tensor, keys: Keys, mask: Tensor | None
    ) -> Tensor:
        return self._context(self._align_tree(x, path, depth, keys[0], mask), keys[0])

    def start(self, keys: Keys) -> Heard:
        return self.begin(len(keys[0]), keys[0])

    def step(
        self, x: Tensor, keys: Keys, mask: Tensor | None, heard: Heard
    ) -> tuple[Tensor, Heard]:
        said, values = self.read(x).flatten(0, 1), keys[0]  # (N, P)
        weights, heard = self.advance(said, heard, each_sequence(mask, len(said)), values.size(2))
        return self._context(weights.unflatten(0, x.shape[:2]), values), heard

    def _context(self, weights: Tensor, values: Tensor) -> Tensor:
        """(N, U, H, T) -> (N, U, D)."""
        return self.output(grouped_context(self.dropout(weights).to(values.dtype), values))

    def _align(self, x: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """The weights of whole sequences, (N, U, D) -> (N, U, H, T)."""
        said, heard = self.read(x), self.begin(len(x), values)
        mask, weights = each_sequence(mask, len(x)), []
        for token in said.unbind(1):
            if torch.is_grad_enabled():
                # Between tokens the alignment alone is kept; the rest is computed twice.
                now, heard = checkpoint(
                    self.advance,
                    token,
                    heard,
                    mask,
                    values.size(2),
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                now, heard = self.advance(token, heard, mask, values.size(2))
            weights.append(now)
        return torch.stack(weights, 1)

    def _align_tree(
        self, x: Tensor, path: Tensor, depth: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The weights at each node, (B, M, D) -> (B, M, H, T): all nodes of a depth at once."""
        b, m = depth.shape
        said, level = self.read(x).flatten(0, 1), depth.flatten()
        first = torch.arange(0, b * m, m, device=x.device)[:, None]
        before = path & (depth[:, None] == depth[..., None] - 1)
        parent = (before.to(torch.uint8).argmax(2) + first).flatten()  # (B * M,)
        place = torch.zeros_like(parent)  # of a node among those of its depth
        heard, order, weights = (), [], []
        for d in range(int(level.max()) + 1):
            at = (level == d).nonzero()[:, 0]
            if d == 0:
                heard = self.begin(len(at), values)
            else:
                heard = tuple(h[place[parent[at]]] for h in heard)
            rows = None if mask is None else mask[:, 0, 0][at // m]
            now, heard = self.advance(said[at], heard, rows, values.size(2))
            place[at] = torch.arange(len(at), device=x.device)
            order.append(at)
            weights.append(now)
        return torch.cat(weights)[torch.cat(order).argsort()].unflatten(0, (b, m))


def each_sequence(mask: Tensor | None, count: int) -> Tensor | None:
    """The mask (B, 1, 1, T) for each of N sequences, (N, T)."""
    if mask is None:
        return None
    return mask[:, 0, 0].repeat_interleave(count // len(mask), 0)
