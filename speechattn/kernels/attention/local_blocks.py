"""Local attention block by block, forwards and backwards.

The real frames of a batch, item by item and phase by phase of the dilation, are laid out in one row
in which every sequence begins with a new block of c queries. The keys of a block are then a slice
of the row around it, and those of neighbouring blocks overlap: strided views without a copy. Some
blocks of a head at a time form a tile, whose scores stay in the cache of a core; backwards they are
computed again.

Legend: see `speechattn.kernels`; P frames of the row, c queries of a block, n blocks of a tile,
R = H / Hkv c rows of scores of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from speechattn.kernels.attention.dropout import WeightDropout
from speechattn.kernels.attention.time_blocks import wide
from speechattn.kernels.attention.window import AttentionWindow

BLOCK = 64  # queries; more of them look at more keys that they do not see, fewer make thin products
TILE_SCORES = 1 << 18  # 1 MB of float32
GPU_SCORES = 1 << 26


def lowest(dtype: torch.dtype) -> float:
    """Return the score of a masked key: finite, for queries that see no key."""
    return torch.finfo(dtype).min / 2  # half of it: products are added to it


def skips_padding(device: torch.device) -> bool:
    """Return whether padding is left out: only on a CPU can lengths be read without waiting."""
    return device.type == "cpu"


@dataclass(frozen=True)
class _Tile:
    """Blocks `start` to `stop` of a head of keys, and of each its queries `first` to `last`."""

    head: int
    start: int
    stop: int
    first: int
    last: int


class _Row:
    """The layout of a batch's frames in one row, and the tiles that are computed together."""

    def __init__(self, k: Tensor, heads: int, lengths: Tensor, window: AttentionWindow):
        self.batch, self.frames, self.kv_heads, self.depth = k.shape
        self.shared = heads // self.kv_heads
        self.device, self.dtype = k.device, wide(k.dtype)
        self.skips = skips_padding(k.device)
        d, s = window.dilation, window.stride
        # Sequences: an item's phases one after the other. Where padding is not skipped, every item
        # takes the room of all T frames.
        items = lengths if self.skips else torch.full((self.batch,), self.frames)
        room = _phases(items, d)
        longest = int(room.max()) if len(room) else 0
        size = max(BLOCK // s, 1) * s
        self.size = min(size, -(-longest // s) * s) if longest else size
        blocks = -(-room // self.size)
        self.sequence = torch.arange(len(room)).repeat_interleave(blocks)  # of each block
        self.count = len(self.sequence)
        begins = blocks.cumsum(0) - blocks
        # The first frame of each block within its sequence.
        self.begin = (torch.arange(self.count) - begins[self.sequence]) * self.size
        # Keys left and right of a block; beyond its sequence there is nothing to see.
        self.before = min(window.before, longest)
        self.after = min(window.after, longest)
        self.keys = self.before + self.size + self.after
        self.length = self.before + self.count * self.size + self.after

        # Item, phase, frames, and the first frame in the row.
        places = (begins * self.size + self.before).tolist()
        self.sequences = [
            (index // d, index % d, frames, place)
            for index, (frames, place) in enumerate(zip(room.tolist(), places, strict=True))
            if frames
        ]
        self.dilation = d
        ends = room[self.sequence] - self.begin  # of the sequence, from the block's first frame
        outside = (self.begin < self.before) | (ends < self.size + self.after)
        self.at_border = outside.tolist() if self.skips else [True] * self.count
        self.begin = self.begin.to(self.device)
        lengths = _phases(lengths, d)
        self.ends = lengths[self.sequence.to(self.device)] - self.begin

        self.window = window
        self._bias: tuple[int, Tensor] | None = None

    def to_row(self, x: Tensor) -> Tensor:
        """Copy (B, T, H, Dh) to (H, before + P + after, Dh), zero where there is no frame."""
        row = torch.empty(x.shape[2], self.length, x.shape[3], dtype=self.dtype, device=x.device)
        done = 0
        for item, phase, frames, place in self.sequences:
            row[:, done:place].zero_()
            done = place + frames
            row[:, place:done] = self._sequence(x, item, phase, frames).transpose(0, 1)
        row[:, done:].zero_()
        return row

    def from_row(self, row: Tensor, like: Tensor) -> Tensor:
        """Copy (H, before + P + after, Dh) to (B, T, H, Dh) of the dtype of `like`, else zero."""
        y = like.new_zeros(self.batch, self.frames, row.shape[0], row.shape[2])
        for item, phase, frames, place in self.sequences:
            found = row[:, place : place + frames].transpose(0, 1)
            self._sequence(y, item, phase, frames).copy_(found)
        return y

    def _sequence(self, x: Tensor, item: int, phase: int, frames: int) -> Tensor:
        """Return a view (frames, H, Dh) of (B, T, H, Dh)."""
        return x[item, phase : phase + frames * self.dilation : self.dilation]

    def tiles(self) -> Iterator[_Tile]:
        """Yield all tiles, those of the same queries in a row: they share a mask."""
        scores = TILE_SCORES if self.device.type == "cpu" else GPU_SCORES
        rows = max(min(scores // (self.shared * self.keys), self.size), 1)
        each = max(scores // (self.shared * rows * self.keys), 1) if rows == self.size else 1
        for first in range(0, self.size if self.count else 0, rows):
            last = min(first + rows, self.size)
            for head in range(self.kv_heads):
                for start in range(0, self.count, each):
                    yield _Tile(head, start, min(start + each, self.count), first, last)

    def bias(self, tile: _Tile) -> Tensor:
        """Return a bias (R, m) that masks keys outside of the windows, for all blocks."""
        if self._bias is None or self._bias[0] != tile.first:
            i = torch.arange(tile.first, tile.last, device=self.device)[:, None] * self.dilation
            j = torch.arange(-self.before, self.size + self.after, device=self.device)
            visible = self.window.visible(i, j * self.dilation)
            bias = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
            bias.masked_fill_(~visible, lowest(self.dtype))
            self._bias = tile.first, bias.repeat(self.shared, 1)
        return self._bias[1]

    def queries(self, row: Tensor, tile: _Tile) -> Tensor:
        """Return the rows (n, R, D') of a tile of (H, before + P + after, D')."""
        return self._queries(row, tile).flatten(1, 2)

    def set_queries(self, row: Tensor, tile: _Tile, x: Tensor) -> None:
        """Write the rows (n, R, D') of a tile."""
        self._queries(row, tile).copy_(x.unflatten(1, (self.shared, -1)))

    def _queries(self, row: Tensor, tile: _Tile) -> Tensor:
        """Return a view (n, H / Hkv, c, D')."""
        heads = row[tile.head * self.shared : (tile.head + 1) * self.shared]
        heads = heads[:, self.before : self.before + self.count * self.size]
        blocks = heads.unflatten(1, (self.count, self.size))  # (H / Hkv, blocks, c, D')
        return blocks[:, tile.start : tile.stop, tile.first : tile.last].transpose(0, 1)

    def slices(self, row: Tensor, tile: _Tile) -> Tensor:
        """Return the keys (n, m, Dh) of a tile, a view whose blocks overlap."""
        return self._overlapping(row, tile, 0, self.keys)

    def add_slices(self, row: Tensor, tile: _Tile, x: Tensor) -> None:
        """Add (n, m, Dh) to the keys of a tile."""
        for first in range(0, self.keys, self.size):
            last = min(first + self.size, self.keys)
            self._overlapping(row, tile, first, last).add_(x[:, first:last])

    def _overlapping(self, row: Tensor, tile: _Tile, first: int, last: int) -> Tensor:
        head = row[tile.head]
        return head.as_strided(
            (tile.stop - tile.start, last - first, self.depth),
            (self.size * self.depth, self.depth, 1),
            head.storage_offset() + (tile.start * self.size + first) * self.depth,
        )

    def scores(self, q: Tensor, k: Tensor, sink: Tensor | None, tile: _Tile) -> Tensor:
        """Compute scores (n, R, m) of queries and keys of a tile, one column more for a sink."""
        scale = self.depth**-0.5
        scores = torch.baddbmm(self.bias(tile).expand(len(q), -1, -1), q, k.mT, alpha=scale)
        if any(self.at_border[tile.start : tile.stop]):
            blocks = slice(tile.start, tile.stop)
            place = torch.arange(self.keys, device=self.device) - self.before
            hidden = place < -self.begin[blocks, None]
            hidden |= place >= self.ends[blocks, None]  # (n, m)
            scores.masked_fill_(hidden[:, None], lowest(self.dtype))
        if sink is None:
            return scores
        column = sink.unflatten(0, (self.kv_heads, -1))[tile.head]  # (H / Hkv,)
        column = column.to(scores).repeat_interleave(tile.last - tile.first)[None, :, None]
        return torch.cat((scores, column.expand(len(q), -1, -1)), dim=2)


def _phases(lengths: Tensor, dilation: int) -> Tensor:
    """Return the number of frames of each phase of each item, (B d,)."""
    phase = torch.arange(dilation, device=lengths.device)
    found = (lengths[:, None] - phase + dilation - 1).div(dilation, rounding_mode="floor")
    return found.clamp(min=0).flatten()


# Lengths, window, dropout and its seed.
Settings = tuple[Tensor, AttentionWindow, float, int]


def forward(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, settings: Settings, totals: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute the output (B, T, H, Dh) and, if asked for, the log denominators (B, T, H)."""
    lengths, window, dropout, seed = settings
    row = _Row(k, q.shape[2], lengths, window)
    queries, keys, values = (row.to_row(x) for x in (q, k, v))
    dropping = WeightDropout(dropout, seed, k.device) if dropout > 0 else None
    out = torch.empty_like(queries)
    total = out.new_empty(*out.shape[:2], 1)
    for tile in row.tiles():
        scores = row.scores(row.queries(queries, tile), row.slices(keys, tile), sink, tile)
        highest = scores.amax(-1, keepdim=True) if totals else None
        weights = _softmax(scores)
        if totals:
            # The highest weight is one over the sum of exp(score - highest): no need to sum again.
            row.set_queries(total, tile, highest - weights.amax(-1, keepdim=True).log())
        weights = weights[..., : row.keys]
        if dropping is not None:
            weights = weights * dropping.mask(weights)
        row.set_queries(out, tile, torch.bmm(weights, row.slices(values, tile)))
    return row.from_row(out, q), row.from_row(total, total)[..., 0] if totals else None


def backward(
    *heads: Tensor, sink: Tensor | None, grad_total: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of q, k, v and sink from those of both results of `forward`."""
    (q, k, v, grad), (lengths, window, dropout, seed) = heads, settings
    row = _Row(k, q.shape[2], lengths, window)
    queries, keys, values, slope = (row.to_row(x) for x in (q, k, v, grad))
    slope_total = None if grad_total is None else row.to_row(grad_total[..., None])
    dropping = WeightDropout(dropout, seed, k.device) if dropout > 0 else None
    d_queries = torch.empty_like(queries)
    d_keys, d_values = torch.zeros_like(keys), torch.zeros_like(values)
    d_sink = None if sink is None else torch.zeros(q.shape[2], dtype=row.dtype, device=q.device)
    scale = row.depth**-0.5
    for tile in row.tiles():
        q_tile, k_tile = row.queries(queries, tile), row.slices(keys, tile)
        everything = _softmax(row.scores(q_tile, k_tile, sink, tile))
        weights = everything[..., : row.keys]  # (n, R, m)
        dy = row.queries(slope, tile)  # (n, R, Dh)
        d_weights = torch.bmm(dy, row.slices(values, tile).transpose(1, 2))
        if dropping is None:
            kept = weights
        else:
            mask = dropping.mask(weights)
            kept, d_weights = weights * mask, d_weights.mul_(mask)
        row.add_slices(d_values, tile, torch.bmm(kept.transpose(1, 2), dy))
        inner = torch.linalg.vecdot(weights, d_weights)[..., None]  # (n, R, 1)
        if slope_total is not None:
            inner = inner - row.queries(slope_total, tile)
        if d_sink is not None:
            by_row = (everything[..., row.keys :] * inner).sum((0, 2))
            part = d_sink[tile.head * row.shared : (tile.head + 1) * row.shared]
            part -= by_row.unflatten(0, (row.shared, -1)).sum(1)
        d_scores = d_weights.sub_(inner).mul_(weights)
        row.set_queries(d_queries, tile, torch.bmm(d_scores, k_tile).mul_(scale))
        row.add_slices(d_keys, tile, torch.bmm(d_scores.transpose(1, 2), q_tile).mul_(scale))
    found = (row.from_row(d, x) for d, x in ((d_queries, q), (d_keys, k), (d_values, v)))
    return *found, None if d_sink is None else d_sink.to(sink.dtype)


def _softmax(scores: Tensor) -> Tensor:
    """Compute the softmax over keys, in place."""
    return torch.softmax(scores, dim=-1, out=scores)


class LocalAttention(torch.autograd.Function):
    """`forward` and `backward`."""

    @staticmethod
    def forward(ctx, q, k, v, sink, lengths, window, dropout, seed, totals):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, lengths, *(() if sink is None else (sink,)))
        ctx.settings = window, dropout, seed
        return forward(q, k, v, sink, (lengths, window, dropout, seed), totals)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_total):
        q, k, v, lengths, *sink = ctx.saved_tensors
        sink = sink[0] if sink else None
        if grad is None:
            grad = torch.zeros_like(q)
        with torch.autocast(grad.device.type, enabled=False):
            settings = lengths, *ctx.settings
            grads = backward(q, k, v, grad, sink=sink, grad_total=grad_total, settings=settings)
        return *grads, None, None, None, None, None
