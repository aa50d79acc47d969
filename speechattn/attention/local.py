"""Self-attention within a window of neighbours.

Legend: B utterances, T frames, H heads, D width, Dh = D / H width of a head.
"""

import torch
from torch import Tensor, nn

from speechattn.attention.base import SelfAttention
from speechattn.attention.cache import AttentionCache
from speechattn.attention.rotary import rotate
from speechattn.dropout import Dropout
from speechattn.kernels.attention.local import local_attention
from speechattn.kernels.attention.window import Window
from speechattn.masks import Chunks


class LocalSelfAttention(SelfAttention):
    """Softmax attention of each frame to a window of its neighbours.

    Generalized Neighborhood Attention (2504.16922) in one dimension; `Window` says which frames
    those are. With `Chunks(1)` a frame sees what of its window is not after it: with stride 1 the
    frames to the left and itself.

    MASFormer (2310.12442) is a list of mechanisms in an encoder's `attention`: this one for most
    layers, and one that sees whole items for a few.

    Time and memory O(T) for T frames.

    Args:
        width: D.
        heads: H; D / H is the width of a head, even where positions are rotary.
        dropout: of the attention weights.
        window: keys of a window, one more of them to the left where it is even; or how many are to
            the left and to the right of the query.
        stride: neighbouring frames that share a window; as many as it has keys make blocks.
        dilation: every how many frames there is one to look at.
        sink: each head learns a score that takes part in the softmax and has no value, so that it
            may look at nothing (2309.17453); it begins at 0.
        rotary: positions by turning queries and keys (2104.09864); without, frames of a window are
            a set.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        window: int | tuple[int, int] = 128,
        stride: int = 1,
        dilation: int = 1,
        sink: bool = False,
        rotary: bool = True,
    ):
        super().__init__()
        check_heads("LocalSelfAttention", width, heads, rotary)
        self.width = width
        self.heads = heads
        self.window = Window.of(window, stride, dilation)
        self.rotary = rotary
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.sink = nn.Parameter(torch.zeros(heads)) if sink else None
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        chunks: Chunks | None = None,
    ) -> Tensor:
        window = self.window.past() if self.only_causal(chunks) else self.window
        q, k, v = self._project(x, 0)
        dropout = self.dropout.p if self.training else 0.0
        y = local_attention(q, k, v, lengths, window, dropout, self.sink)
        return self.output(y.flatten(2))

    def init_state(self, batch: int) -> AttentionCache:
        """The cache of B streams that have not begun: it keeps what the next frame may see."""
        nothing = self.query.weight.new_zeros(batch, 0, self.heads, self.width // self.heads)
        return AttentionCache(nothing, nothing)

    def step(self, x: Tensor, past: AttentionCache) -> tuple[Tensor, AttentionCache]:
        """Attend from the next frames to what of their windows is not after them; no dropout."""
        q, k, v = self._project(x, past.start + past.frames)
        cache = past.append(k, v)
        everything = torch.full((len(x),), cache.frames, device=x.device)
        window = self.window.past()
        y = local_attention(
            q, cache.key, cache.value, everything, window, sink=self.sink, start=cache.start
        )
        return self.output(y.flatten(2)), cache.keep(window.reach)

    def _project(self, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, T, H, Dh) of frames from `first` on."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value))
        return (rotate(q, first), rotate(k, first), v) if self.rotary else (q, k, v)


def check_heads(name: str, width: int, heads: int, rotary: bool = True) -> None:
    """Whether heads are of one width, even where positions are rotary.

    Raises:
        ValueError: they are not.
    """
    if width % (2 * heads if rotary else heads):
        parts = "even parts" if rotary else "equal parts"
        raise ValueError(f"{name}: {heads} heads do not cut width {width} into {parts}")
