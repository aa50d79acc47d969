"""Near frames one by one, far ones by a token for each group of them.

Legend: B utterances, T frames, H heads, D width, Dh = D / H width of a head, g frames of a group,
E = ceil(T / g) groups, c frames of a step or queries of a tile.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechattn.attention.base import SelfAttention
from speechattn.attention.cache import AttentionCache
from speechattn.attention.local import check_heads
from speechattn.attention.rotary import rotate
from speechattn.dropout import Dropout
from speechattn.kernels.attention.far_groups import Far, look_far
from speechattn.kernels.attention.local import attention_and_totals
from speechattn.kernels.attention.local_blocks import lowest
from speechattn.kernels.attention.time_blocks import wide
from speechattn.kernels.attention.window import Window
from speechattn.kernels.backend import choose
from speechattn.kernels.precision import operands
from speechattn.masks import Chunks


@dataclass(frozen=True)
class CoreState:
    """What streams keep: near frames, and a core token for each group that is over.

    Attributes:
        near: keys and values from the beginning of a group on.
        key: (B, E, H, Dh) of the core tokens, from the beginning of the stream.
        value: (B, E, H, Dh).
    """

    near: AttentionCache
    key: Tensor
    value: Tensor

    def keep(self, frames: int) -> "CoreState":
        """Never possible."""
        raise ValueError(
            "CoreContextSelfAttention looks back to the first frame: stream with left_context -1"
        )


class CoreContextSelfAttention(SelfAttention):
    """Core Context Aware attention (2412.12465).

    The item is cut into groups of g frames. A group's core token is a mean of its keys, and one of
    its values, weighed by their significance to its last query:

        weights = softmax(q_last k_group^T / sqrt(Dh)).

    A frame sees those of its own group and of the groups within `window` frames one by one, and the
    core tokens of all others, in one softmax.
    What we chose: as in the authors' program keys are turned by their positions before they are
    pooled. The borders of what is near are those of groups, here for a group's last frame, too,
    which in the program looks a group less far. Where all of an item is seen, near is to both
    sides, and a last group of fewer frames has a core token like any other; its last query is the
    item's. With `Chunks(1)` only groups that are over have one.

    Time O(T^2 / g) for T frames, beside the near ones' T (2 window + g); memory O(T).

    Args:
        width: D.
        heads: H; D / H is even.
        dropout: of the attention weights.
        group: g; of one frame each this is softmax attention.
        window: frames before a group that are near, and after it but for `Chunks(1)`; a multiple
            of g.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, group: int = 16, window: int = 64
    ):
        super().__init__()
        check_heads("CoreContextSelfAttention", width, heads)
        if group < 1:
            raise ValueError(f"CoreContextSelfAttention: group is at least 1 frame, not {group}")
        if window < 0 or window % group:
            raise ValueError(
                f"CoreContextSelfAttention: window is a multiple of group, {window // group + 1} "
                f"times {group}, not {window}"
            )
        self.width = width
        self.heads = heads
        self.group = group
        self.near = window // group  # groups to either side
        self.window = Window(window + group // 2, window + (group - 1) // 2, stride=group)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        chunks: Chunks | None = None,
    ) -> Tensor:
        causal = self.only_causal(chunks)
        window = self.window.past() if causal else self.window
        q, k, v = operands(*self._project(x, 0))
        dropout = self.dropout.p if self.training else 0.0
        y, total = attention_and_totals(q, k, v, lengths, window, dropout)
        # Of fewer frames no group is far.
        if choose(x.device) == "reference" or x.shape[1] > (self.near + 1) * self.group:
            core_key, core_value = self._pool(q, k, v, lengths)
            count = (lengths + self.group - 1).div(self.group, rounding_mode="floor")
            far = Far(self.group, self.near, causal)
            y = look_far(q, core_key, core_value, y, total, count, far, 0, dropout)
        return self.output(y.flatten(2))

    def init_state(self, batch: int) -> CoreState:
        """The state of B streams that have not begun."""
        nothing = self.query.weight.new_zeros(batch, 0, self.heads, self.width // self.heads)
        return CoreState(AttentionCache(nothing, nothing), nothing, nothing)

    def step(self, x: Tensor, past: CoreState) -> tuple[Tensor, CoreState]:
        """Attend from the next frames to themselves and what was before them; no dropout."""
        first = past.near.start + past.near.frames
        q, k, v = operands(*self._project(x, first))
        near = past.near.append(k, v)
        frames = first + x.shape[1]
        begin, over = past.key.shape[1] * self.group, frames // self.group * self.group
        core_key, core_value = past.key, past.value
        if begin < over:  # groups end within this step
            ended = slice(begin - near.start, over - near.start)
            # Their frames from before the step need no queries: only the last of a group is read.
            padded = functional.pad(q, (0, 0, 0, 0, first - near.start, 0))
            everything = torch.full((len(x),), over - begin, device=x.device)
            pooled = self._pool(
                padded[:, ended], near.key[:, ended], near.value[:, ended], everything
            )
            core_key = torch.cat((core_key.to(q), pooled[0]), dim=1)
            core_value = torch.cat((core_value.to(q), pooled[1]), dim=1)
        seen = torch.full((len(x),), near.frames, device=x.device)
        y, total = attention_and_totals(
            q, near.key, near.value, seen, self.window.past(), start=near.start
        )
        count = torch.full((len(x),), core_key.shape[1], device=x.device)
        far = Far(self.group, self.near, causal=True)
        y = look_far(q, core_key, core_value, y, total, count, far, first)
        oldest = max(frames // self.group - self.near, 0) * self.group
        return self.output(y.flatten(2)), CoreState(
            near.keep(frames - oldest), core_key, core_value
        )

    def _project(self, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, T, H, Dh) of frames from `first` on."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value))
        return rotate(q, first), rotate(k, first), v

    def _pool(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, E, H, Dh) of the core tokens; finite where a group has no frame."""
        k, v = (
            functional.pad(x, (0, 0, 0, 0, 0, self.group - 1)).unfold(1, self.group, self.group)
            for x in (k, v)
        )  # (B, E, H, Dh, g)
        begin = torch.arange(k.shape[1], device=k.device) * self.group
        last = torch.minimum(begin + self.group, lengths[:, None]).clamp(min=1) - 1  # (B, E)
        item = torch.arange(len(q), device=q.device)[:, None]
        queries = q[item, last]  # (B, E, H, Dh)
        dtype = wide(q.dtype)
        scores = torch.einsum("behd,behdg->behg", queries.to(dtype), k.to(dtype))
        place = begin[:, None] + torch.arange(self.group, device=k.device)  # (E, g)
        hidden = (place >= lengths[:, None, None])[:, :, None]  # (B, E, 1, g)
        scores = (scores / math.sqrt(q.shape[3])).masked_fill(hidden, lowest(dtype))
        weights = scores.softmax(-1).to(k.dtype)
        key, value = (torch.einsum("behg,behdg->behd", weights, x) for x in (k, v))
        return key, value
