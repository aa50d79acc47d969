"""Recurrence within chunks, softmax attention across them (RAT, 2507.04416).

Legend: see `speechattn.attention`; g frames of a chunk, E = ceil(T / g) chunks.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from speechattn.attention.base import SelfAttention, check_heads
from speechattn.attention.rotary import rotate
from speechattn.dropout import Dropout
from speechattn.kernels.attention.far_groups import FarGroups, add_far_groups
from speechattn.kernels.attention.local_blocks import lowest
from speechattn.kernels.attention.time_blocks import wide
from speechattn.kernels.precision import operands
from speechattn.masks import padding_mask


@dataclass(frozen=True)
class RecurrentState:
    """The state of streams: the last state of each complete chunk, and the frames of the next.

    Attributes:
        key, value: (B, E, H, Dh), keys rotated by the chunk's index.
        pending: (3, B, fewer than g, H, Dh) keys, values and gate logits.
    """

    key: Tensor
    value: Tensor
    pending: Tensor

    def keep(self, frames: int) -> "RecurrentState":
        """Raise ValueError: all chunks' states are needed."""
        raise ValueError(
            "RecurrentSelfAttention looks back to the first chunk: stream with left_context -1"
        )


class RecurrentSelfAttention(SelfAttention):
    """A gated linear recurrence in each chunk of frames, and attention to the chunks' last states.

        s_l = f_l * s_(l-1) + (1 - f_l) * (k_l, v_l),    from s = 0 at the beginning of a chunk
        y_l = z_l * softmax over the last states of other chunks and s_l

    with gates f and z for each channel, sigmoids of projections of the input (RAT, 2507.04416).
    With chunks of 1 frame this is softmax attention, with one chunk a recurrence; between, scores
    cost T^2 / g. Keys are rotated by the index of their chunk. As in the authors' code, gates begin
    as those of averages over 2 to g frames, and heads may share projections of queries and keys,
    which pays for those of the gates.

    The paper is causal. Over whole utterances a frame also sees the last states of the chunks after
    its own, and the rest of its own chunk as one more state, by the same recurrence from the other
    end.

    Time O(T^2 / g) for T frames, memory O(T).

    Args:
        width: D.
        heads: H; D / H is even.
        dropout: of the heads' outputs.
        chunk: g, at least 1; the paper's 16.
        key_heads: projections of queries and keys, divides H; 0 for H.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, *, chunk: int = 16, key_heads: int = 0
    ):
        super().__init__()
        check_heads("RecurrentSelfAttention", width, heads, rotary=True)
        if chunk < 1:
            raise ValueError(f"RecurrentSelfAttention: chunk is at least 1 frame, not {chunk}")
        key_heads = key_heads or heads
        if key_heads < 1 or heads % key_heads:
            raise ValueError(
                f"RecurrentSelfAttention: key_heads is 0 or divides {heads} heads, not {key_heads}"
            )
        self.width, self.heads, self.chunk = width, heads, chunk
        self.query = nn.Linear(width, key_heads * (width // heads))
        self.key = nn.Linear(width, key_heads * (width // heads))
        self.value = nn.Linear(width, width)
        self.forget = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        with torch.no_grad():
            self.forget.bias.uniform_(1, max(chunk - 1, 1)).log_()

    def attend(self, x: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        q, *tensors = self._project(x)
        near, keys, values = self._within(q, *tensors, lengths, causal=causal)
        count = (lengths + self.chunk - 1).div(self.chunk, rounding_mode="floor")
        far = FarGroups(self.chunk, 0, causal)
        y = add_far_groups(self._rotated(q, 0), rotate(keys), values, near, count=count, far=far)
        return self._merge(y, x)

    def init_state(self, batch: int) -> RecurrentState:
        """Return the state of B streams before their first frame."""
        nothing = self.query.weight.new_zeros(batch, 0, self.heads, self.width // self.heads)
        return RecurrentState(nothing, nothing, torch.stack((nothing, nothing, nothing)))

    def step(self, x: Tensor, past: RecurrentState) -> tuple[Tensor, RecurrentState]:
        q, k, v, forget = self._project(x)
        pending = torch.cat((past.pending.to(k), torch.stack((k, v, forget))), 2)
        before, frames = past.pending.shape[2], pending.shape[2]
        over, first = past.key.shape[1], past.key.shape[1] * self.chunk
        padded = pad(q, (0, 0, 0, 0, before, 0))
        everything = torch.full((len(x),), frames, device=x.device)
        near, keys, values = self._within(padded, *pending, everything, causal=True)
        near = near[0][:, before:], near[1][:, before:]
        keys = torch.cat((past.key.to(keys), rotate(keys, over)), 1)
        values = torch.cat((past.value.to(values), values), 1)
        count = torch.full((len(x),), keys.shape[1], device=x.device)
        q = self._rotated(padded, over)[:, before:]
        far = FarGroups(self.chunk, 0, causal=True)
        y = add_far_groups(q, keys, values, near, count=count, far=far, first=first + before)
        ended = over + frames // self.chunk
        left = pending[:, :, frames // self.chunk * self.chunk :]
        return self._merge(y, x), RecurrentState(keys[:, :ended], values[:, :ended], left)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys, values and gate logits, (B, T, H, Dh)."""
        layers = (self.query, self.key, self.value, self.forget)
        head = self.width // self.heads
        q, k, v, forget = operands(*(f(x).unflatten(-1, (-1, head)) for f in layers))
        q, k = (part.repeat_interleave(self.heads // part.shape[2], 2) for part in (q, k))
        return q, k, v, forget

    def _within(
        self, q: Tensor, k: Tensor, v: Tensor, forget: Tensor, lengths: Tensor, *, causal: bool
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Attend within chunks: outputs and logs of denominators; the chunks' last keys and values.

        All (B, T, H, Dh) begin with a chunk; `forget` has the logits of the gates.
        """
        frames, dtype = q.shape[1], wide(q.dtype)
        real = padding_mask(lengths, frames)[..., None, None]
        forget = forget.to(dtype)  # close to 1, a gate has too few digits in half precision
        pairs = torch.stack((k, v)).to(dtype).masked_fill(~real, 0.0)
        pairs = (-forget).sigmoid() * pairs  # (2, B, T, H, Dh)
        gates = forget.sigmoid().masked_fill(~real, 1.0)  # padding leaves a state as it is
        size = self._size(frames)
        room = -frames % size
        gates = pad(gates, (0, 0, 0, 0, 0, room), value=1.0).unflatten(1, (-1, size))
        pairs = pad(pairs, (0, 0, 0, 0, 0, room)).unflatten(2, (-1, size))
        states = _recurrence(pairs, gates)  # (2, B, E, g, H, Dh)
        keys, values = states[:, :, :, -1]
        seen = [states.flatten(2, 3)[:, :, :frames]]
        if not causal:
            after = _recurrence(pairs.flip(3), gates.flip(2)).flip(3)
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

    def _rotated(self, q: Tensor, over: int) -> Tensor:
        """Rotate queries (B, T, H, Dh), from chunk `over` on, by their chunks' indices."""
        frames, size = q.shape[1], self._size(q.shape[1])
        q = pad(q, (0, 0, 0, 0, 0, -frames % size)).unflatten(1, (-1, size))
        q = rotate(q.transpose(1, 2).flatten(0, 1), over)  # (B * g, E, H, Dh)
        return q.unflatten(0, (-1, size)).transpose(1, 2).flatten(1, 2)[:, :frames]

    def _size(self, frames: int) -> int:
        """Return the frames of a chunk: g, but no more than there are, to save padding."""
        return min(self.chunk, max(frames, 1))

    def _merge(self, y: Tensor, x: Tensor) -> Tensor:
        """Gate (B, T, H, Dh) by the input (B, T, D) and project to (B, T, D)."""
        return self.output(self.dropout(y.flatten(2) * self.gate(x).sigmoid()))


def _recurrence(pairs: Tensor, gates: Tensor) -> Tensor:
    """Compute s_l = gates_l s_(l-1) + pairs_l, (2, B, E, g, H, Dh), along each chunk's frames."""
    states = [pairs[:, :, :, 0]]
    for frame in range(1, gates.shape[2]):
        states.append(torch.addcmul(pairs[:, :, :, frame], gates[:, :, frame], states[-1]))
    return torch.stack(states, 3)
