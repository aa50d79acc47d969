"""Attention to near blocks of frames, and for each head to another shard of the far ones.

Legend: B utterances, T frames, D width, H heads, g frames of a block, N blocks.
"""

from torch import Tensor, nn

from speechattn.attention.base import SelfAttention
from speechattn.attention.local import check_heads
from speechattn.attention.rotary import rotate
from speechattn.dropout import Dropout
from speechattn.kernels.attention.block_layouts import near_blocks, shards
from speechattn.kernels.attention.block_sparse import block_sparse_attention
from speechattn.masks import Chunks


class BlockSparseSelfAttention(SelfAttention):
    """Sharded attention (S2-Attention, 2407.17678) beside local blocks.

    A head sees the blocks next to a frame's own, and every `stride`-th block of the item, from
    another one on than the heads beside it: together the heads see everything. Blocks are counted
    from the first frame. Positions are rotary.

    Time O(T^2 / stride) for T frames, beside the near ones' T g; memory O(T).

    Args:
        width: D.
        heads: H; D / H is even.
        dropout: of the attention weights.
        block: g.
        stride: of the shards; 0 for the number of heads, 1 for softmax attention.
        near: blocks to either side of a frame's own that are seen by all heads.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        block: int = 32,
        stride: int = 0,
        near: int = 1,
    ):
        super().__init__()
        check_heads("BlockSparseSelfAttention", width, heads)
        if block < 1 or stride < 0 or near < 0:
            raise ValueError(
                "BlockSparseSelfAttention: block is at least 1, stride and near at least 0, not "
                f"{block}, {stride} and {near}"
            )
        self.heads = heads
        self.block = block
        self.stride = stride or heads
        self.near = near
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
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value))
        blocks = -(-x.shape[1] // self.block)
        layout = near_blocks(blocks, self.near, x.device)
        layout = layout | shards(self.heads, blocks, self.stride, x.device)
        dropout = self.dropout.p if self.training else 0.0
        y = block_sparse_attention(
            rotate(q), rotate(k), v, lengths, layout, self.block, causal, dropout
        )
        return self.output(y.flatten(2))
