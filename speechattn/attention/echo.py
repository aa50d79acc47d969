"""Windows of several sizes beside the whole item, weighed frame by frame.

Legend: B utterances, T frames, H heads, D width, Dh = D / H width of a head, K windows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechattn.attention.base import SelfAttention
from speechattn.attention.cache import AttentionCache
from speechattn.attention.local import check_heads
from speechattn.attention.rotary import rotate
from speechattn.dropout import Dropout
from speechattn.kernels.attention.exact import attention
from speechattn.kernels.attention.local import local_attention
from speechattn.kernels.attention.window import Window
from speechattn.masks import Chunks


class EchoSelfAttention(SelfAttention):
    """Echo-MSA (2309.07765): attention over several lengths, merged by a gate.

        y = output(sum_k gate_k(x) branch_k(x)),  gate(x) = softmax(W x + b) over K + 1 branches,

    where branch 0 is softmax attention to the whole item and branch k to a window of `windows[k-1]`
    frames.
    What the paper says is that attention of variable length, from frames over phonemes and words to
    discourse, runs parallel to ordinary attention and that a dynamic gate merges the two. What we
    chose: the branches share queries, keys and values (with rotary positions), so that a window
    costs no parameters but its row of the gate; the gate weighs all branches at once, each frame
    for itself and all heads alike, and begins with equal weights; the windows are sliding ones.

    Time O(T^2) for T frames, for the sake of branch 0; memory O(T).

    Args:
        width: D.
        heads: H; D / H is even.
        dropout: of the attention weights.
        windows: their sizes in frames. At 40 ms a frame the default's are a phoneme or two, a word
            or two, and a phrase. Of an even number one more frame is to the left.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, windows: Sequence[int] = (4, 16, 64)
    ):
        super().__init__()
        check_heads("EchoSelfAttention", width, heads)
        self.width = width
        self.heads = heads
        self.windows = tuple(Window.of(size) for size in windows)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.gate = nn.Linear(width, 1 + len(self.windows)) if self.windows else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        chunks: Chunks | None = None,
    ) -> Tensor:
        causal = self.only_causal(chunks)
        q, k, v = self._project(x, 0)
        dropout = self.dropout.p if self.training else 0.0
        branches = [attention(q, k, v, lengths, chunks, dropout, query_lengths=lengths)]
        for window in self.windows:
            window = window.past() if causal else window
            branches.append(local_attention(q, k, v, lengths, window, dropout))
        return self._merge(x, branches)

    def init_state(self, batch: int) -> AttentionCache:
        """The cache of B streams that have not begun."""
        nothing = self.query.weight.new_zeros(batch, 0, self.heads, self.width // self.heads)
        return AttentionCache(nothing, nothing)

    def step(self, x: Tensor, past: AttentionCache) -> tuple[Tensor, AttentionCache]:
        """Attend from the next frames to themselves and what was before them; no dropout."""
        q, k, v = self._project(x, past.start + past.frames)
        cache = past.append(k, v)
        kept = torch.full((len(x),), cache.frames, device=x.device)
        windows = (Window(cache.frames, 0), *(window.past() for window in self.windows))
        branches = [local_attention(q, cache.key, cache.value, kept, each) for each in windows]
        return self._merge(x, branches), cache

    def _merge(self, x: Tensor, branches: list[Tensor]) -> Tensor:
        """Weigh (B, T, H, Dh) each by the input (B, T, D): (B, T, D)."""
        y = branches[0]
        if self.gate is not None:
            gate = self.gate(x).softmax(-1)[..., None, None]  # (B, T, 1 + K, 1, 1)
            y = sum(gate[:, :, k] * branch for k, branch in enumerate(branches))
        return self.output(y.flatten(2))

    def _project(self, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, T, H, Dh) of frames from `first` on."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value))
        return rotate(q, first), rotate(k, first), v
