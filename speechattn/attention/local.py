"""Self-attention within a window of neighbours."""

import torch
from torch import Tensor, nn

from speechattn.attention.base import HeadSelfAttention
from speechattn.attention.cache import AttentionCache
from speechattn.kernels.attention.local import local_attention
from speechattn.kernels.attention.window import AttentionWindow


class LocalSelfAttention(HeadSelfAttention):
    """Softmax attention of each frame to a window of its neighbours.

    Generalized Neighborhood Attention (2504.16922) in one dimension; see `AttentionWindow`. With
    `Chunks(1)` a frame sees only the part of its window that is not after it.

    MASFormer (2310.12442) is a list of mechanisms in an encoder's `attention`: this one for most
    layers, and one that sees whole utterances for a few.

    Time and memory O(T) for T frames.

    Args:
        width: D.
        heads: H; D / H is the width of a head, even where positions are rotary.
        dropout: of the attention weights.
        window: keys of a window, one more of them to the left where it is even; or how many are to
            the left and to the right of the query.
        stride: neighbouring frames that share a window; equal to the window, blocks.
        dilation: distance between the frames of a window.
        sink: each head learns a score that takes part in the softmax and has no value, so that it
            may attend to nothing (2309.17453); it begins at 0.
        rotary: rotary positions (2104.09864); without, the frames of a window have no order.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        *,
        window: int | tuple[int, int] = 128,
        stride: int = 1,
        dilation: int = 1,
        sink: bool = False,
        rotary: bool = True,
    ):
        super().__init__(width, heads, dropout, rotary=rotary)
        self.window = AttentionWindow.from_size(window, stride, dilation)
        self.sink = nn.Parameter(torch.zeros(heads)) if sink else None

    def attend(self, x: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        window = self.window.past() if causal else self.window
        y = local_attention(
            *self.project(x), lengths, window=window, dropout=self.weight_dropout, sink=self.sink
        )
        return self.output(y.flatten(2))

    def step(self, x: Tensor, past: AttentionCache) -> tuple[Tensor, AttentionCache]:
        """Attend within the windows' past; the cache keeps what the next frame may see."""
        q, k, v = self.project(x, past.start + past.frames)
        cache = past.append(k, v)
        everything = torch.full((len(x),), cache.frames, device=x.device)
        window = self.window.past()
        y = local_attention(
            q, cache.key, cache.value, everything, window=window, sink=self.sink, start=cache.start
        )
        return self.output(y.flatten(2)), cache.keep(window.reach)
