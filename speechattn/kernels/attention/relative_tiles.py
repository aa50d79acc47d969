"""Relative attention tile by tile: no tensor of T x T scores, forwards or backwards.

A tile of c queries and m keys needs W = c + m - 1 distances. Their products with the queries are a
(c, W) matrix, of which a view with a row stride of W - 1 is the (c, m) matrix by key: no copy is
needed. Forwards on a CPU that view is the additive mask of torch's `scaled_dot_product_attention`,
which computes the weights without storing them. Backwards the weights of a tile are computed again,
unless the item is short. Few heads are computed at a time, so that a tile stays in the cache of a
core. Legend: see `speechattn.kernels`; h heads of a part, R = G h.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from speechattn.kernels.attention.dropout import WeightDropout
from speechattn.kernels.attention.tiles import Group, Tile, groups, tiles
from speechattn.kernels.precision import HALF
from speechattn.masks import Chunks

# Weights of an item up to this many stay in memory until the backward pass: 4 MB a layer and item.
KEPT_WEIGHTS = 1 << 20
# Keys of all heads that are computed together on a CPU: what 128 queries store for them is 2 MB, a
# core's own cache. Half and twice as many are about as fast, all heads of a long item are not.
PART_KEYS = 1 << 12
# Frames from which it pays to lay the rows of a head one after another, which a tenth of the time
# of every tile then saves.
MANY_FRAMES = 512


def by_key(by_distance: Tensor, keys: int) -> Tensor:
    """Return a tile's values by distance (R, c, W), contiguous, as values by key (R, c, m), a view.

    Column r of row i is the distance of key r + i - (c - 1).
    """
    items, queries, width = by_distance.shape
    return by_distance.as_strided(
        (items, queries, keys),
        (queries * width, width - 1, 1),
        by_distance.storage_offset() + queries - 1,
    )


def tile_weights(
    content: Tensor, place: Tensor, k: Tensor, p: Tensor, hidden: Sequence[Tensor]
) -> Tensor:
    """Return the attention weights of a tile.

    Args:
        content: (R, c, Dh) scaled queries with the content bias.
        place: (H, G, c, Dh) scaled queries with the position bias.
        k: (R, m, Dh).
        p: (H, W, Dh), distances of the tile, the largest first.
        hidden: masks that broadcast to (G, 1, c, m), True where a query does not see a key.

    Returns:
        (R, c, m).
    """
    # All items share p: their queries go through one product a head.
    by_distance = torch.bmm(place.flatten(1, 2), p.transpose(1, 2))  # (H, G c, W)
    shifted = by_key(by_distance.view(len(k), -1, p.shape[1]), k.shape[1])
    if content.dtype in HALF:
        scores = shifted.float().add_(torch.bmm(content, k.transpose(1, 2)))
    else:
        scores = torch.baddbmm(shifted, content, k.transpose(1, 2))
    for mask in hidden:
        # The lowest finite number and not -inf: exactly zero after the softmax where a query sees
        # a key, and no NaN where it sees none.
        by_head = scores.view(len(p), -1, *scores.shape[1:])  # (H, G, c, m)
        by_head.masked_fill_(mask.transpose(0, 1), torch.finfo(scores.dtype).min)
    if scores.requires_grad:
        return scores.softmax(-1).to(k.dtype)
    torch.softmax(scores, dim=-1, out=scores)
    return scores.to(k.dtype)


@dataclass(frozen=True)
class _Part:
    """A group of items and some of the heads, which are computed together."""

    group: Group
    heads: slice

    @property
    def frames(self) -> int:
        return self.group.frames

    def select(self, x: Tensor) -> Tensor:
        """Return the part (G, frames, h, ...) of (B, T, H, ...), a view."""
        return x[self.group.start : self.group.stop, : self.frames, self.heads]

    def heads_first(self, x: Tensor) -> Tensor:
        """Return the part of (B, T, H, Dh) as (R, frames, Dh), a view where it is one item."""
        return self.select(x).permute(2, 0, 1, 3).reshape(-1, self.frames, x.shape[3])

    def frames_first(self, x: Tensor) -> Tensor:
        """Return a view (G, c, h, Dh) of (R, c, Dh)."""
        return self.by_head(x).permute(1, 2, 0, 3)

    def by_head(self, x: Tensor) -> Tensor:
        """Return a view (h, G, ...) of (R, ...)."""
        return x.unflatten(0, (self.heads.stop - self.heads.start, -1))

    def hidden(self, tile: Tile) -> list[Tensor]:
        """Return masks that broadcast to (G, 1, c, m), True where a query does not see a key."""
        masks = []
        if self.group.padding is not None:
            masks.append(self.group.padding[..., tile.first : tile.last])
        if tile.hidden is not None:
            masks.append(tile.hidden[None, None])
        return masks


class _Walk:
    """The parts of a batch and their tiles, in the order of both passes."""

    def __init__(self, k: Tensor, p: Tensor, lengths: Tensor, chunks: Chunks | None):
        self.frames, self.heads = k.shape[1:3]
        self.p = p.transpose(0, 1)  # (H, 2T-1, Dh)
        self.groups = groups(lengths, self.frames, self.heads)
        self.chunks = chunks

    def parts(self) -> Iterator[_Part]:
        for group in self.groups:
            each = self.heads
            if self.p.device.type == "cpu":
                keys = (group.stop - group.start) * group.frames
                each = min(max(PART_KEYS // keys, 1), self.heads)
            for head in range(0, self.heads, each):
                yield _Part(group, slice(head, min(head + each, self.heads)))

    def tiles(self, part: _Part) -> Iterator[Tile]:
        rows = (part.heads.stop - part.heads.start) * (part.group.stop - part.group.start)
        return tiles(part.frames, rows, self.chunks, self.p.device)

    def band(self, part: _Part, tile: Tile) -> tuple[slice, slice]:
        """Return the index into (H, 2T-1, Dh) of the heads and distances of a tile."""
        return part.heads, slice(
            self.frames - tile.stop + tile.first, self.frames - 1 - tile.start + tile.last
        )

    def weights(self, content: Tensor, place: Tensor, k: Tensor, part: _Part, tile: Tile) -> Tensor:
        """Return the weights (R, c, m) of a tile, from a part's operands."""
        return tile_weights(
            content[:, tile.start : tile.stop],
            part.by_head(place[:, tile.start : tile.stop]),
            k[:, tile.first : tile.last],
            self.p[self.band(part, tile)],
            part.hidden(tile),
        )


def fused(*tensors: Tensor, chunks: Chunks | None) -> Tensor:
    """Compute `forward` on a CPU, without dropout and without the weights."""
    content, place, k, v, p, lengths = tensors
    walk = _Walk(k, p, lengths, chunks)
    out = torch.zeros_like(v, memory_format=torch.contiguous_format)
    room = v.new_empty(0)  # for products by distance: allocation costs as much as they do
    for part in walk.parts():
        q_part = part.select(content).transpose(1, 2)  # (G, h, frames, Dh)
        k_part, v_part = (part.select(x).transpose(1, 2) for x in (k, v))
        beyond = walk.frames - part.frames  # distances on either side that no pair has
        p_part = walk.p[part.heads, beyond : walk.p.shape[1] - beyond]
        if part.frames >= MANY_FRAMES:
            k_part, v_part, p_part = k_part.contiguous(), v_part.contiguous(), p_part.contiguous()
        place_part = part.by_head(part.heads_first(place))  # (h, G, frames, Dh)
        y = part.select(out)
        for tile in walk.tiles(part):
            queries = place_part[:, :, tile.start : tile.stop].flatten(1, 2)  # (h, G c, Dh)
            begin = part.frames - tile.stop + tile.first
            width = tile.stop - tile.start + tile.last - tile.first - 1  # W
            distances = p_part[:, begin : begin + width].transpose(1, 2)  # (h, Dh, W)
            shape = *queries.shape[:2], distances.shape[2]
            if room.numel() < math.prod(shape):
                room = v.new_empty(math.prod(shape))
            by_distance = room[: math.prod(shape)].view(shape)
            torch.bmm(queries, distances, out=by_distance)
            by_distance = by_distance.view(-1, tile.stop - tile.start, shape[2])
            bias = part.by_head(by_key(by_distance, tile.last - tile.first)).transpose(0, 1)
            for mask in part.hidden(tile):  # as in `tile_weights`
                bias.masked_fill_(mask, torch.finfo(bias.dtype).min)
            seen = slice(tile.first, tile.last)
            found = scaled_dot_product_attention(
                q_part[:, :, tile.start : tile.stop], k_part[:, :, seen], v_part[:, :, seen],
                attn_mask=bias, scale=1.0,
            )  # (G, h, c, Dh)  # fmt: skip
            y[:, tile.start : tile.stop] = found.transpose(1, 2)
        if part.group.padding is not None:
            y.masked_fill_(part.group.padding.view(len(y), -1, 1, 1), 0.0)
    return out


def forward(
    *tensors: Tensor, chunks: Chunks | None, dropout: float, seed: int, keep: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Compute the output, and optionally return the weights.

    Args:
        tensors: scaled queries with the content bias and with the position bias, k and v, (B, T, H,
            Dh) each; p (2T-1, H, Dh); lengths (B,).
        chunks: what a query sees.
        dropout: of the weights, drawn from `seed`.
        seed: see `dropout`.
        keep: return the weights.

    Returns:
        (B, T, H, Dh), zero beyond an item's length; and each tile's weights before dropout, if
        `keep`.
    """
    content, place, k, v, p, lengths = tensors
    if not keep and dropout == 0 and k.device.type == "cpu":
        return fused(*tensors, chunks=chunks), []
    walk = _Walk(k, p, lengths, chunks)
    dropping = WeightDropout(dropout, seed, k.device) if dropout > 0 else None
    out, kept = torch.zeros_like(v, memory_format=torch.contiguous_format), []
    for part in walk.parts():
        qu, qw, keys, values = (part.heads_first(x) for x in (content, place, k, v))
        y = part.select(out)
        for tile in walk.tiles(part):
            weights = walk.weights(qu, qw, keys, part, tile)
            if keep:
                kept.append(weights)
            if dropping is not None:
                weights = weights * dropping.mask(weights)
            found = torch.bmm(weights, values[:, tile.first : tile.last])  # (R, c, Dh)
            y[:, tile.start : tile.stop] = part.frames_first(found)
        if part.group.padding is not None:
            y.masked_fill_(part.group.padding.view(len(y), -1, 1, 1), 0.0)
    return out, kept


def backward(
    *tensors: Tensor, kept: Sequence[Tensor], chunks: Chunks | None, dropout: float, seed: int
) -> tuple[Tensor, ...]:
    """Return the gradients of the first five tensors of `forward`, from that of its output."""
    content, place, k, v, p, lengths, out, grad = tensors
    walk = _Walk(k, p, lengths, chunks)
    dropping = WeightDropout(dropout, seed, k.device) if dropout > 0 else None
    remembered = iter(kept)
    # Sums over tiles of half precision are taken in float32.
    total = torch.float32 if k.dtype in HALF else k.dtype
    d_content, d_place, d_k, d_v = (torch.zeros_like(x) for x in (content, place, k, v))
    d_p = torch.zeros_like(walk.p, dtype=total, memory_format=torch.contiguous_format)
    for part in walk.parts():
        qu, qw, keys, values = (part.heads_first(x) for x in (content, place, k, v))
        dy, y = part.heads_first(grad), part.heads_first(out)
        if part.group.padding is not None:
            padded = part.group.padding.view(1, -1, part.frames, 1)
            dy = part.by_head(dy).masked_fill(padded, 0.0).flatten(0, 1)
        # sum_j weight_ij dweight_ij of the softmax's gradient, with and without dropout.
        inner = (dy * y).sum(-1, keepdim=True).neg_()  # (R, frames, 1)
        dk = torch.zeros_like(keys, dtype=total, memory_format=torch.contiguous_format)
        dv = torch.zeros_like(values, dtype=total, memory_format=torch.contiguous_format)
        dqu, dqw = part.select(d_content), part.select(d_place)
        for tile in walk.tiles(part):
            rows, seen = slice(tile.start, tile.stop), slice(tile.first, tile.last)
            weights = next(remembered) if kept else walk.weights(qu, qw, keys, part, tile)
            dy_tile, v_tile = dy[:, rows], values[:, seen].transpose(1, 2)
            if dropping is None:
                _add_product(dv[:, seen], weights, dy_tile)
                slope = torch.baddbmm(inner[:, rows], dy_tile, v_tile)  # (R, c, m)
            else:
                mask = dropping.mask(weights)
                _add_product(dv[:, seen], weights * mask, dy_tile)
                slope = torch.bmm(dy_tile, v_tile).mul_(mask).add_(inner[:, rows])
            # The scores' gradient is written by key and read by distance.
            queries, key_count = weights.shape[1:]
            d_distance = weights.new_zeros(len(weights), queries, queries + key_count - 1)
            d_scores = by_key(d_distance, key_count)
            torch.mul(slope, weights, out=d_scores)

            found = torch.bmm(d_scores, keys[:, seen])  # (R, c, Dh)
            dqu[:, rows] = part.frames_first(found)
            _add_product(dk[:, seen], d_scores, qu[:, rows])
            d_distance = part.by_head(d_distance).flatten(1, 2)  # (h, G c, W)
            band = walk.band(part, tile)
            found = torch.bmm(d_distance, walk.p[band]).view(found.shape)
            dqw[:, rows] = part.frames_first(found)
            _add_product(d_p[band], d_distance, part.by_head(qw[:, rows]).flatten(1, 2))
        for whole, sums in ((d_k, dk), (d_v, dv)):
            part.select(whole).copy_(part.frames_first(sums))
    return d_content, d_place, d_k, d_v, d_p.transpose(0, 1).to(p.dtype)


def _add_product(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a^T b to sums, each a batch of matrices."""
    if sums.dtype == a.dtype and sums.is_contiguous():
        sums.baddbmm_(a.transpose(1, 2), b)
    else:
        sums += torch.bmm(a.transpose(1, 2), b)


class RelativeAttention(torch.autograd.Function):
    """`forward` and `backward`; short items keep their weights, long ones compute them twice."""

    @staticmethod
    def forward(ctx, content, place, k, v, p, lengths, chunks, dropout, seed):
        frames, heads = k.shape[1:3]
        keep = heads * frames * frames <= KEPT_WEIGHTS
        tensors = content, place, k, v, p, lengths
        out, kept = forward(*tensors, chunks=chunks, dropout=dropout, seed=seed, keep=keep)
        # The weights too, and not as an attribute: checkpointing could not let go of them.
        ctx.save_for_backward(*tensors, out, *kept)
        ctx.settings = {"chunks": chunks, "dropout": dropout, "seed": seed}
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        saved = ctx.saved_tensors  # read once: checkpointing computes them again each time
        with torch.autocast(grad.device.type, enabled=False):
            grads = backward(*saved[:7], grad, kept=saved[7:], **ctx.settings)
        return *grads, None, None, None, None
