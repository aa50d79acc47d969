"""Near frames one by one, far ones by a token for each group of them.

Legend: see `speechattn.attention`; g frames of a group, E = ceil(T / g) groups.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from speechattn.attention.base import HeadSelfAttention
from speechattn.attention.cache import AttentionCache
from speechattn.kernels.attention.far_groups import FarGroups, add_far_groups
from speechattn.kernels.attention.local import attention_and_totals
from speechattn.kernels.attention.local_blocks import lowest
from speechattn.kernels.attention.time_blocks import wide
from speechattn.kernels.attention.window import AttentionWindow
from speechattn.kernels.backend import choose
from speechattn.kernels.precision import operands


@dataclass(frozen=True)
class CoreState:
    """The state of streams: near frames, and a core token for each group that is complete.

    Attributes:
        near: keys and values, from the beginning of a group.
        key, value: (B, E, H, Dh) of the core tokens, from the beginning of the stream.
    """

    near: AttentionCache
    key: Tensor
    value: Tensor

    def keep(self, frames: int) -> "CoreState":
        """Raise ValueError: all core tokens are needed."""
        raise ValueError(
            "CoreContextSelfAttention looks back to the first frame: stream with left_context -1"
        )


class CoreContextSelfAttention(HeadSelfAttention):
    """Core Context Aware attention (2412.12465).

    The utterance is cut into groups of g frames. A group's core token is the weighted mean of its
    keys, and of its values, by their significance to its last query:

        weights = softmax(q_last k_group^T / sqrt(Dh)).

    A frame sees the frames of its own group and of the groups within `window` frames one by one,
    and the core tokens of all other groups, in one softmax.
    As in the authors' code keys are rotated before they are pooled. Differences: what is near ends
    at a group's border for a group's last frame too, which there sees one group less. Over whole
    utterances near is to both sides, and a last group of fewer frames has a core token as well, by
    the utterance's last query. With `Chunks(1)` only complete groups have one.

    Time O(T^2 / g) for T frames, beside the near ones' T (2 window + g); memory O(T).

    Args:
        width: D.
        heads: H; D / H is even.
        dropout: of the attention weights.
        group: g; with 1 this is softmax attention.
        window: near frames before a group, and after it except with `Chunks(1)`; a multiple of g.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, *, group: int = 16, window: int = 64
    ):
        super().__init__(width, heads, dropout, rotary=True)
        if group < 1:
            raise ValueError(f"CoreContextSelfAttention: group is at least 1 frame, not {group}")
        if window < 0 or window % group:
            raise ValueError(
                f"CoreContextSelfAttention: window is a multiple of group, {window // group + 1} "
                f"times {group}, not {window}"
            )
        self.group = group
        self.near = window // group  # groups to either side
        self.window = AttentionWindow(window + group // 2, window + (group - 1) // 2, stride=group)

    def attend(self, x: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        window = self.window.past() if causal else self.window
        q, k, v = operands(*self.project(x))
        dropout = self.weight_dropout
        near = attention_and_totals(q, k, v, lengths, window=window, dropout=dropout)
        y = near[0]
        # With fewer frames no group is far.
        if choose(x.device) == "reference" or x.shape[1] > (self.near + 1) * self.group:
            core = self._pool(q, k, v, lengths)
            count = (lengths + self.group - 1).div(self.group, rounding_mode="floor")
            far = FarGroups(self.group, self.near, causal)
            y = add_far_groups(q, *core, near, count=count, far=far, dropout=dropout)
        return self.output(y.flatten(2))

    def init_state(self, batch: int) -> CoreState:
        """Return the state of B streams before their first frame."""
        cache = super().init_state(batch)
        return CoreState(cache, cache.key, cache.value)

    def step(self, x: Tensor, past: CoreState) -> tuple[Tensor, CoreState]:
        first = past.near.start + past.near.frames
        q, k, v = operands(*self.project(x, first))
        near = past.near.append(k, v)
        frames = first + x.shape[1]
        begin, over = past.key.shape[1] * self.group, frames // self.group * self.group
        core_key, core_value = past.key, past.value
        if begin < over:  # groups end within this step
            ended = slice(begin - near.start, over - near.start)
            # Their frames from before the step need no queries: only the last of a group is read.
            padded = functional.pad(q, (0, 0, 0, 0, first - near.start, 0))
            everything = torch.full((len(x),), over - begin, device=x.device)
            parts = (part[:, ended] for part in (padded, near.key, near.value))
            pooled = self._pool(*parts, everything)
            core_key = torch.cat((core_key.to(q), pooled[0]), dim=1)
            core_value = torch.cat((core_value.to(q), pooled[1]), dim=1)
        visible = torch.full((len(x),), near.frames, device=x.device)
        found = attention_and_totals(
            q, near.key, near.value, visible, window=self.window.past(), start=near.start
        )
        count = torch.full((len(x),), core_key.shape[1], device=x.device)
        far = FarGroups(self.group, self.near, causal=True)
        y = add_far_groups(q, core_key, core_value, found, count=count, far=far, first=first)
        oldest = max(frames // self.group - self.near, 0) * self.group
        return self.output(y.flatten(2)), CoreState(
            near.keep(frames - oldest), core_key, core_value
        )

    def _pool(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the core tokens' keys and values (B, E, H, Dh), finite for groups of no frame."""
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
