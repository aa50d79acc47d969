"""Attention to near blocks of frames, and for each head to another shard of the far ones."""

from torch import Tensor

from speechattn.attention.base import HeadSelfAttention
from speechattn.kernels.attention.block_layouts import near_blocks, shards
from speechattn.kernels.attention.block_sparse import block_sparse_attention


class BlockSparseSelfAttention(HeadSelfAttention):
    """Sharded attention (S2-Attention, 2407.17678) beside local blocks.

    A head sees the blocks next to a frame's own, and every `stride`-th block of the utterance, with
    another offset for each head: together the heads see everything. Blocks are counted from the
    first frame. Positions are rotary.

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
        *,
        block: int = 32,
        stride: int = 0,
        near: int = 1,
    ):
        super().__init__(width, heads, dropout, rotary=True)
        if block < 1 or stride < 0 or near < 0:
            raise ValueError(
                "BlockSparseSelfAttention: block is at least 1, stride and near at least 0, not "
                f"{block}, {stride} and {near}"
            )
        self.block = block
        self.stride = stride or heads
        self.near = near

    def attend(self, x: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        blocks = -(-x.shape[1] // self.block)
        layout = near_blocks(blocks, self.near, x.device)
        layout = layout | shards(self.heads, blocks, self.stride, x.device)
        y = block_sparse_attention(
            *self.project(x),
            lengths,
            layout=layout,
            block=self.block,
            causal=causal,
            dropout=self.weight_dropout,
        )
        return self.output(y.flatten(2))
