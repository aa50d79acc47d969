"""Recurrence within chunks, softmax attention across them (RAT, 2507.04416).

Legend: B utterances, T frames, H heads, D width, Dh = D / H width of a head, L frames of a chunk,
E = ceil(T / L) chunks, c frames of a step.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from speechattn.attention.base import SelfAttention
from speechattn.attention.local import check_heads
from speechattn.attention.rotary import rotate
from speechattn.dropout import Dropout
from speechattn.kernels.attention.far_groups import Far, look_far
from speechattn.kernels.attention.local_blocks import lowest
from speechattn.kernels.attention.time_blocks import wide
from speechattn.kernels.precision import operands
from speechattn.masks import Chunks, padding_mask


@dataclass(frozen=True)
class RecurrentState:
    """What streams remember: the last state of each chunk that is over, and frames of the next.

    Attributes:
        key: (B, E, H, Dh), turned by the chunk's index.
        value: (B, E, H, Dh).
        pending: (3, B, fewer than L, H, Dh) keys, values and what gates are the sigmoids of.
    """

    key: Tensor
    value: Tensor
    pending: Tensor

    def keep(self, frames: int) -> "RecurrentState":
        """Never possible."""
        raise ValueError(
            "RecurrentSelfAttention looks back to the first chunk: stream with left_context -1"
        )


class RecurrentSelfAttention(SelfAttention):
    """A gated linear recurrence in each chunk of frames, and attention to the chunks' last states.

        s_l = g_l * s_(l-1) + (1 - g_l) * (k_l, v_l),    from s = 0 at the beginning of a chunk
        y_l = z_l * softmax over the last states of other chunks and s_l

    with gates g and z for each channel, sigmoids of projections of the input (RAT, 2507.04416). L
    of 1 is softmax attention, if the gates let it, L of T a recurrence; between, scores cost
    T^2 / L. Keys are turned by the index of their chunk (rotary), so that what is far counts in
    chunks. As in the authors' program, gates begin as those of averages over 2 to L frames, and
    heads may share projections of queries and keys, which pays for those of the gates.

    The paper is causal. Of a whole item, here, a frame sees the last states of the chunks after its
    own as well, and of its own chunk what comes after it as one more state, by the same recurrence
    from the other end.

    Time O(T^2 / L) for T frames, memory O(T).

    Args:
        width: D.
        heads: H; D / H is even.
        dropout: of what the heads give.
        chunk: L, at least 1; the paper's 16.
        key_heads: projections of queries and keys, divides H; 0 for H.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, chunk: int = 16, key_heads: int = 0
    ):
        super().__init__()
        check_heads("RecurrentSelfAttention", width, heads)
        if chunk < 1:
            raise ValueError(f"RecurrentSelfAttention: chunk is at least 1 frame, not {chunk}")
        key_heads = key_heads or heads
        if key_heads < 1 or heads % key_heads:
            raise ValueError(
                f"RecurrentSelfAttention: key_heads is 0 or divides {heads} heads, not {key_heads}"
            )
        self.width = width
        self.heads = heads
        self.chunk = chunk
        self.query = nn.Linear(width, key_heads * (width // heads))
        self.key = nn.Linear(width, key_heads * (width // heads))
        self.value = nn.Linear(width, width)
        self.forget = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        with torch.no_grad():
            self.forget.bias.uniform_(1, max(chunk - 1, 1)).log_()

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        chunks: Chunks | None = None,
    ) -> Tensor:
        causal = self.only_causal(chunks)
        q, k, v, g = self._project(x)
        y, keys, values = self._within(q, k, v, g, lengths, causal)
        count = (lengths + self.chunk - 1).div(self.chunk, rounding_mode="floor")
        far = Far(self.chunk, 0, causal)
        y = look_far(self._turned(q, 0), rotate(keys), values, *y, count, far)
        return self._merge(y, x)

    def init_state(self, batch: int) -> RecurrentState:
        """The state of B streams that have not begun."""
        nothing = self.query.weight.new_zeros(batch, 0, self.heads, self.width // self.heads)
        return RecurrentState(nothing, nothing, torch.stack((nothing, nothing, nothing)))

    def step(self, x: Tensor, past: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """The next frames, each of which sees what was before it; no dropout."""
        q, k, v, g = self._project(x)
        pending = torch.cat((past.pending.to(k), torch.stack((k, v, g))), 2)
        before, frames = past.pending.shape[2], pending.shape[2]
        over, first = past.key.shape[1], past.key.shape[1] * self.chunk
        padded = pad(q, (0, 0, 0, 0, before, 0))
        everything = torch.full((len(x),), frames, device=x.device)
        y, keys, values = self._within(padded, *pending, everything, True)
        y = tuple(part[:, before:] for part in y)
        keys = torch.cat((past.key.to(keys), rotate(keys, over)), 1)
        values = torch.cat((past.value.to(values), values), 1)
        count = torch.full((len(x),), keys.shape[1], device=x.device)
        turned = self._turned(padded, over)[:, before:]
        far = Far(self.chunk, 0, causal=True)
        y = look_far(turned, keys, values, *y, count, far, first + before)
        ended = over + frames // self.chunk
        left = pending[:, :, frames // self.chunk * self.chunk :]
        return self._merge(y, x), RecurrentState(keys[:, :ended], values[:, :ended], left)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values and what gates are the sigmoids of, (B, T, H, Dh)."""
        layers = (self.query, self.key, self.value, self.forget)
        head = self.width // self.heads
        q, k, v, g = operands(*(f(x).unflatten(-1, (-1, head)) for f in layers))
        q, k = (part.repeat_interleave(self.heads // part.shape[2], 2) for part in (q, k))
        return q, k, v, g

    def _within(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        lengths: Tensor,
        causal: bool,
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """What frames see of their own chunks, and the chunks' last states.

        Args:
            q, k, v, g: (B, T, H, Dh), of frames from the beginning of a chunk, gates before the
                sigmoid.
            lengths: (B,) of them that are real.
            causal: see what was before a frame alone.

        Returns:
            (B, T, H, Dh) and (B, T, H) logarithms of denominators; keys and values (B, E, H, Dh).
        """
        frames, dtype = q.shape[1], wide(q.dtype)
        real = padding_mask(lengths, frames)[..., None, None]
        g = g.to(dtype)  # close to 1, a gate has too few digits in half precision
        pairs = torch.stack((k, v)).to(dtype).masked_fill(~real, 0.0)
        pairs = (-g).sigmoid() * pairs  # (2, B, T, H, Dh)
        g = g.sigmoid().masked_fill(~real, 1.0)  # padding leaves a state as it is
        size = self._size(frames)
        room = -frames % size
        g = pad(g, (0, 0, 0, 0, 0, room), value=1.0).unflatten(1, (-1, size))
        pairs = pad(pairs, (0, 0, 0, 0, 0, room)).unflatten(2, (-1, size))
        states = _recurrence(pairs, g)  # (2, B, E, L, H, Dh)
        keys, values = states[:, :, :, -1]
        seen = [states.flatten(2, 3)[:, :, :frames]]
        if not causal:
            after = _recurrence(pairs.flip(3), g.flip(2)).flip(3)
            after = pad(after[:, :, :, 1:], (0, 0, 0, 0, 0, 1))
            seen.append(after.flatten(2, 3)[:, :, :frames])
        key, value = torch.stack(seen, 3)  # (B, T, 1 or 2, H, Dh)
        scores = torch.einsum("bthd,btshd->btsh", q.to(dtype), key) / math.sqrt(q.shape[3])
        if not causal:
            t = torch.arange(frames, device=q.device)
            last = (t % self.chunk == self.chunk - 1) | (t + 1 >= lengths[:, None])  # (B, T)
            none = torch.stack((torch.zeros_like(last), last), 2)[..., None]
            scores = scores.masked_fill(none, lowest(dtype))
        y = torch.einsum("btsh,btshd->bthd", scores.softmax(2), value)
        return (y.to(q.dtype), scores.logsumexp(2)), keys.to(q.dtype), values.to(q.dtype)

    def _turned(self, q: Tensor, over: int) -> Tensor:
        """Queries (B, T, H, Dh), from the beginning of a chunk, turned by their chunks' indices."""
        frames, size = q.shape[1], self._size(q.shape[1])
        q = pad(q, (0, 0, 0, 0, 0, -frames % size)).unflatten(1, (-1, size))
        turned = rotate(q.transpose(1, 2).flatten(0, 1), over)  # (B * L, E, H, Dh)
        return turned.unflatten(0, (-1, size)).transpose(1, 2).flatten(1, 2)[:, :frames]

    def _size(self, frames: int) -> int:
        """Frames of a chunk: L, but no more than there are, so that a long one is not filled up."""
        return min(self.chunk, max(frames, 1))

    def _merge(self, y: Tensor, x: Tensor) -> Tensor:
        """(B, T, H, Dh), gated by the input, to (B, T, D)."""
        return self.output(self.dropout(y.flatten(2) * self.gate(x).sigmoid()))


def _recurrence(pairs: Tensor, g: Tensor) -> Tensor:
    """s_l = g_l s_(l-1) + pairs_l along the frames of each chunk.

    Args:
        pairs: (2, B, E, L, H, Dh).
        g: (B, E, L, H, Dh).
    """
    states = [pairs[:, :, :, 0]]
    for frame in range(1, g.shape[2]):
        states.append(torch.addcmul(pairs[:, :, :, frame], g[:, :, frame], states[-1]))
    return torch.stack(states, 3)
