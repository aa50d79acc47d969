"""Windows of several sizes beside the whole utterance, weighted frame by frame."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechattn.attention.base import HeadSelfAttention
from speechattn.attention.cache import AttentionCache
from speechattn.kernels.attention.exact import attention
from speechattn.kernels.attention.local import local_attention
from speechattn.kernels.attention.window import AttentionWindow
from speechattn.masks import Chunks


class EchoSelfAttention(HeadSelfAttention):
    """Echo-MSA (2309.07765): attention over several lengths, merged by a gate.

        y = output(sum over branches of gate(x) branch(x)),  gate(x) = softmax(W x + b)

    where the first branch is softmax attention to the whole utterance and the others are to windows
    of `windows` frames.
    The paper says that attention of variable length, from frames over phonemes and words to
    discourse, runs parallel to ordinary attention and that a dynamic gate merges the two. Our
    choices: the branches share queries, keys and values (with rotary positions), so that a window
    costs no parameters but its row of the gate; the gate weights all branches at once, frame by
    frame and the same for all heads, and begins with equal weights; windows slide.

    Time O(T^2) for T frames, because of the first branch; memory O(T).

    Args:
        width: D.
        heads: H; D / H is even.
        dropout: of the attention weights.
        windows: sizes in frames; an even one has one more frame to the left. At 40 ms a frame the
            defaults are a phoneme or two, a word or two, and a phrase.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, *, windows: Sequence[int] = (4, 16, 64)
    ):
        super().__init__(width, heads, dropout, rotary=True)
        self.windows = tuple(AttentionWindow.from_size(size) for size in windows)
        self.gate = nn.Linear(width, 1 + len(self.windows)) if self.windows else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def attend(self, x: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        q, k, v = self.project(x)
        chunks, dropout = Chunks(1) if causal else None, self.weight_dropout
        branches = [
            attention(q, k, v, lengths, chunks=chunks, dropout=dropout, query_lengths=lengths)
        ]
        for window in self.windows:
            window = window.past() if causal else window
            branches.append(local_attention(q, k, v, lengths, window=window, dropout=dropout))
        return self._merge(x, branches)

    def step(self, x: Tensor, past: AttentionCache) -> tuple[Tensor, AttentionCache]:
        q, k, v = self.project(x, past.start + past.frames)
        cache = past.append(k, v)
        kept = torch.full((len(x),), cache.frames, device=x.device)
        windows = (AttentionWindow(cache.frames, 0), *(window.past() for window in self.windows))
        branches = [
            local_attention(q, cache.key, cache.value, kept, window=each) for each in windows
        ]
        return self._merge(x, branches), cache

    def _merge(self, x: Tensor, branches: list[Tensor]) -> Tensor:
        """Merge branches (B, T, H, Dh) by the gate of the input (B, T, D): (B, T, D)."""
        y = branches[0]
        if self.gate is not None:
            gate = self.gate(x).softmax(-1)[..., None, None]  # (B, T, branches, 1, 1)
            y = sum(gate[:, :, k] * branch for k, branch in enumerate(branches))
        return self.output(y.flatten(2))
