"""Self-attention with relative positions (Transformer-XL, 1901.02860, section 3.3).

The arithmetic of ESPnet's "latest" `RelPositionMultiHeadedAttention`.
Legend: B utterances, T frames, H heads, D width, Dh = D / H width of a head.
"""

import math

import torch
from torch import Tensor, nn

from speechattn.attention.positions import relative_positions
from speechattn.dropout import Dropout
from speechattn.masks import padding_mask


def relative_shift(scores: Tensor) -> Tensor:
    """Turn scores by distance into scores by key, without a copy.

    Args:
        scores: (..., T, 2T-1), column r of every row is the distance i - j = T-1-r.

    Returns:
        (..., T, T), a view where [i, j] is scores[i, T-1-i+j].
    """
    scores = scores.contiguous()
    frames = scores.shape[-2]
    if scores.shape[-1] != 2 * frames - 1:
        raise ValueError(f"relative_shift: wants (..., T, 2T-1), got {tuple(scores.shape)}")
    # One row down moves the diagonal one column left: a row stride of 2T-2 instead of 2T-1.
    return scores.as_strided(
        (*scores.shape[:-1], frames),
        (*scores.stride()[:-2], 2 * frames - 2, 1),
        scores.storage_offset() + frames - 1,
    )


class RelativeSelfAttention(nn.Module):
    """Multi-head self-attention over content and relative position.

    score[i, j] = ((q_i + u) . k_j + (q_i + v) . W p_(i-j)) / sqrt(Dh), with a learnt content bias u
    and position bias v per head.

    Args:
        width: D.
        heads: H, divides D.
        dropout: of the attention weights.
    """

    patterns = ("noncausal self",)

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"RelativeSelfAttention: {heads} heads do not divide width {width}")
        self.width = width
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.position = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.empty(heads, width // heads))
        self.position_bias = nn.Parameter(torch.empty(heads, width // heads))
        self.dropout = Dropout(dropout)
        nn.init.xavier_uniform_(self.content_bias)
        nn.init.xavier_uniform_(self.position_bias)

    def forward(self, x: Tensor, lengths: Tensor, positions: Tensor | None = None) -> Tensor:
        """Attend from every frame to the real ones.

        Args:
            x: (B, T, D), finite everywhere, padding included.
            lengths: (B,) int64. An item of no frames gives finite values, never NaN.
            positions: (2T-1, D) from `RelativePositions`; plain sinusoids where left out.

        Returns:
            (B, T, D); frames beyond an item's length are of no meaning.
        """
        batch, frames, _ = x.shape
        if positions is None:
            positions = relative_positions(frames, self.width, x.device).to(x.dtype)
        heads, depth = self.heads, self.width // self.heads
        # Scaling the queries is Dh/T of the work of scaling the scores.
        scale = 1 / math.sqrt(depth)
        q = self.query(x).view(batch, frames, heads, depth)
        k = self.key(x).view(batch, frames, heads, depth).permute(0, 2, 3, 1)  # (B, H, Dh, T)
        v = self.value(x).view(batch, frames, heads, depth).transpose(1, 2)  # (B, H, T, Dh)
        p = self.position(positions).view(-1, heads, depth).permute(1, 2, 0)  # (H, Dh, 2T-1)

        scores = torch.matmul(((q + self.content_bias) * scale).transpose(1, 2), k)  # (B, H, T, T)
        # Every item shares p: its rows go through one product a head, p is not copied B times.
        by_distance = ((q + self.position_bias) * scale).view(-1, heads, depth).transpose(0, 1)
        by_distance = torch.matmul(by_distance, p).view(heads, batch, frames, -1)  # (H, B, T, 2T-1)
        scores += relative_shift(by_distance).transpose(0, 1)

        padding = ~padding_mask(lengths, frames)[:, None, None]  # (B, 1, 1, T)
        # The lowest finite number and not -inf: exactly zero after the softmax where an item has a
        # frame, and no NaN where it has none.
        scores.masked_fill_(padding, torch.finfo(scores.dtype).min)
        weights = self.dropout(scores.softmax(dim=-1))
        y = torch.matmul(weights, v).transpose(1, 2).reshape(batch, frames, self.width)
        return self.output(y)
