"""Attention of a batch without its padding: the items' frames one after another.

Projections and whatever else goes frame by frame then touch real frames only; the padded kernels
skip padding in the scores, and so does this, by the same groups. On a CPU a long item is computed
where it stands, short ones together; a GPU gets the padded batch of queries, keys and values for
the kernel alone.
Legend beyond the package's: N frames of all items together; item i is rows cu_seqlens[i] to
cu_seqlens[i+1], the layout and the name of FlashAttention-2 (2307.08691).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from speechattn.kernels.attention.exact import attention
from speechattn.kernels.attention.local_attention import local_attention
from speechattn.kernels.attention.relative_attention import relative_attention
from speechattn.kernels.attention.tiles import groups
from speechattn.kernels.attention.window import Window
from speechattn.masks import Chunks, padding_mask


@dataclass(frozen=True)
class Packed:
    """A ragged batch without padding.

    Attributes:
        frames: (N, ...).
        cu_seqlens: (B+1,) int64, from 0 to N.
        longest: T, frames of the padded batch it came from.
    """

    frames: Tensor
    cu_seqlens: Tensor
    longest: int

    @property
    def lengths(self) -> Tensor:
        """(B,) int64."""
        return self.cu_seqlens.diff()

    def replace(self, frames: Tensor) -> "Packed":
        """The same items with other values, (N, ...): what a layer that goes by frame gave."""
        if len(frames) != len(self.frames):
            raise ValueError(f"Packed: {len(self.frames)} frames replaced by {len(frames)}")
        return Packed(frames, self.cu_seqlens, self.longest)


def pack(x: Tensor, lengths: Tensor) -> Packed:
    """Leave the padding out.

    Args:
        x: (B, T, ...).
        lengths: (B,) int64, at most T.

    Raises:
        ValueError: an item is longer than x.
    """
    batch, longest = x.shape[:2]
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    if x.device.type != "cpu":
        return Packed(x[padding_mask(lengths, longest)], starts, longest)
    counts = lengths.tolist()
    if max(counts, default=0) > longest:
        raise ValueError(f"pack: an item of {max(counts)} frames in a batch of {longest}")
    parts = [item[:count] for item, count in zip(x.unbind(), counts, strict=True)]
    return Packed(torch.cat(parts) if batch else x.flatten(0, 1), starts, longest)


def unpack(packed: Packed) -> tuple[Tensor, Tensor]:
    """The inverse of `pack`: (B, T, ...), zero in the padding, and lengths (B,)."""
    x, lengths = packed.frames, packed.lengths
    if x.device.type != "cpu":
        real = padding_mask(lengths, packed.longest)
        # A position per frame, so that nothing waits for the device.
        row = real.flatten().cumsum(0).sub(1).clamp(min=0).view(real.shape)
        padded = x[row] if len(x) else x.new_zeros(*real.shape, *x.shape[1:])
        return padded.masked_fill(~real.view(*real.shape, *(1 for _ in x.shape[1:])), 0.0), lengths
    return _padded(x.split(lengths.tolist()), packed.longest, x), lengths


def attention_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    chunks: Chunks | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Exact attention within each item; see `speechattn.kernels.attention.exact.attention`.

    Args:
        q: (N, H, Dh).
        k: (N, Hkv, Dh).
        v: (N, Hkv, Dh).
        cu_seqlens: (B+1,) int64.
        longest: T, at least the longest item's frames.
        chunks: what a frame sees of its item; None for all of it.
        dropout: of the attention weights.

    Returns:
        (N, H, Dh).
    """

    def compute(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        return attention(q, k, v, lengths, chunks, dropout)

    return by_group(compute, (q, k, v), cu_seqlens, longest)


def relative_attention_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    cu_seqlens: Tensor,
    chunks: Chunks | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Relative attention within each item; see `relative_attention`.

    Args:
        q: (N, H, Dh).
        k: (N, H, Dh).
        v: (N, H, Dh).
        p: (2T-1, H, Dh) distances from T-1 down to 1-T, T at least the longest item's frames.
        content_bias: (H, Dh).
        position_bias: (H, Dh).
        cu_seqlens: (B+1,) int64.
        chunks: what a frame sees of its item; None for all of it.
        dropout: of the attention weights.

    Returns:
        (N, H, Dh).
    """
    longest = (len(p) + 1) // 2

    def compute(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        frames = q.shape[1]
        band = p[longest - frames : longest + frames - 1]
        return relative_attention(
            q, k, v, band, content_bias, position_bias, lengths, chunks, dropout
        )

    return by_group(compute, (q, k, v), cu_seqlens, longest)


def local_attention_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    window: Window,
    dropout: float = 0.0,
    sink: Tensor | None = None,
) -> Tensor:
    """Attention within windows of each item; see `local_attention`.

    Args:
        q: (N, H, Dh).
        k: (N, Hkv, Dh).
        v: (N, Hkv, Dh).
        cu_seqlens: (B+1,) int64.
        longest: T, at least the longest item's frames.
        window: what a frame sees.
        dropout: of the attention weights.
        sink: (H,) or None.

    Returns:
        (N, H, Dh).
    """

    def compute(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        return local_attention(q, k, v, lengths, window, dropout, sink)

    return by_group(compute, (q, k, v), cu_seqlens, longest)


def by_group(
    compute: Callable[..., Tensor],
    tensors: tuple[Tensor, ...],
    cu_seqlens: Tensor,
    longest: int,
) -> Tensor:
    """Run a padded kernel on packed operands, a group of items at a time.

    Args:
        compute: takes the operands (G, t, H, Dh) and lengths (G,), gives (G, t, H, Dh).
        tensors: (N, H, Dh) operands; the number of heads of the first counts.
        cu_seqlens: (B+1,) int64.
        longest: T, at least the longest item's frames.

    Returns:
        (N, H, Dh).

    Raises:
        ValueError: the boundaries do not go with the operands.
    """
    first, lengths = tensors[0], cu_seqlens.diff()
    if first.device.type != "cpu":
        padded = [unpack(Packed(x, cu_seqlens, longest))[0] for x in tensors]
        rows = _rows(len(first), cu_seqlens, longest)
        return compute(*padded, lengths).flatten(0, 1).index_select(0, rows)
    bounds = cu_seqlens.tolist()
    counts = lengths.tolist()
    if bounds[0] != 0 or any(bounds[-1] != len(x) for x in tensors) or min(counts, default=0) < 0:
        raise ValueError(
            f"packed attention: boundaries from {bounds[0]} to {bounds[-1]} want to rise from 0 to "
            f"the number of frames, {[len(x) for x in tensors]}"
        )
    if max(counts, default=0) > longest:
        raise ValueError(f"packed attention: an item of {max(counts)} frames, longest {longest}")
    # Split once: a slice's gradient would be as large as the whole, for every item.
    items = [x.split(counts) for x in tensors]
    parts = []
    for group in groups(lengths, longest, first.shape[1]):
        chosen = [x[group.start : group.stop] for x in items]
        if group.padding is None:
            operands = [torch.cat(x).view(len(x), -1, *x[0].shape[1:]) if len(x) > 1 else x[0][None]
                        for x in chosen]  # fmt: skip
        else:
            operands = [_padded(x, group.frames, x[0]) for x in chosen]
        y = compute(*operands, lengths[group.start : group.stop])
        parts += [
            row[:count] for row, count in zip(y, counts[group.start : group.stop], strict=True)
        ]
    return torch.cat(parts) if parts else torch.zeros_like(first)


def _rows(frames: int, cu_seqlens: Tensor, longest: int) -> Tensor:
    """(N,) where each packed frame stands among the B T of the padded batch.

    A mask would say the same, but to count what is in it waits for the device.
    """
    place = torch.arange(frames, device=cu_seqlens.device)
    item = torch.searchsorted(cu_seqlens[1:].contiguous(), place, right=True)
    return item * longest + place - cu_seqlens[item]


def _padded(items: tuple[Tensor, ...], frames: int, like: Tensor) -> Tensor:
    """(G, frames, ...), zero beyond each item's own frames."""
    if not items:
        return like.new_zeros(0, frames, *like.shape[1:])
    pads = (0, 0) * (like.dim() - 1)
    return torch.stack(
        [torch.nn.functional.pad(item, (*pads, 0, frames - len(item))) for item in items]
    )
