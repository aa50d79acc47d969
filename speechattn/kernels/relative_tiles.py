"""Relative attention tile by tile: no tensor of T x T scores, forwards or backwards.

A tile of c queries and m keys needs W = c + m - 1 distances. Its products with the queries stand in
a (c, W) matrix in which a view with a row stride of W - 1 is the (c, m) matrix by key, so that
nothing is copied into place. Backwards the weights of a tile are computed again, unless the item
is short.
Group, tile: see `speechattn.kernels.tiles`. N is H times the items of the group.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from speechattn.kernels.dropout import WeightDropout
from speechattn.kernels.precision import HALF
from speechattn.kernels.tiles import Group, Tile, groups, tiles
from speechattn.masks import Chunks

# Weights of an item up to this many stay in memory until the backward pass: 4 MB a layer and item.
KEPT_WEIGHTS = 1 << 20


def by_key(by_distance: Tensor, keys: int) -> Tensor:
    """See a tile's values by distance as values by key.

    Args:
        by_distance: (N, c, W) contiguous; column r of row i is the distance of key r + i - (c - 1).
        keys: m = W - c + 1.

    Returns:
        (N, c, m), a view.
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
    """The attention weights of a tile.

    Args:
        content: (N, c, Dh) scaled queries with the content bias.
        place: (H, G, c, Dh) scaled queries with the position bias.
        k: (N, m, Dh).
        p: (H, W, Dh), distances of the tile, the largest first.
        hidden: masks that go with (G, 1, c, m), True where a query does not see a key.

    Returns:
        (N, c, m).
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


class _Walk:
    """The tiles of a batch, each with its operands, in the order of both passes."""

    def __init__(self, content, place, k, v, p, lengths, chunks: Chunks | None):
        self.operands = content, place, k, v
        self.frames, self.heads = k.shape[1:3]
        self.p = p.transpose(0, 1)  # (H, 2T-1, Dh)
        self.groups = groups(lengths, self.frames, self.heads)
        self.chunks = chunks

    def heads_first(self, x: Tensor, group: Group) -> Tensor:
        """A group's part of (B, T, H, Dh) as (N, frames, Dh), a view where it is one item."""
        part = x[group.start : group.stop, : group.frames].permute(2, 0, 1, 3)
        return part.reshape(-1, group.frames, x.shape[3])

    def frames_first(self, x: Tensor) -> Tensor:
        """(N, c, Dh) to (G, c, H, Dh), a view."""
        return x.unflatten(0, (self.heads, -1)).permute(1, 2, 0, 3)

    def tiles(self, group: Group) -> Iterator[Tile]:
        rows = self.heads * (group.stop - group.start)
        return tiles(group.frames, rows, self.chunks, self.p.device)

    def band(self, tile: Tile) -> slice:
        """The rows of p with the distances of a tile."""
        return slice(self.frames - tile.stop + tile.first, self.frames - 1 - tile.start + tile.last)

    def place_rows(self, place: Tensor, tile: Tile) -> Tensor:
        """(N, frames, Dh) to the tile's (H, G, c, Dh)."""
        return place[:, tile.start : tile.stop].unflatten(0, (self.heads, -1))

    def hidden(self, group: Group, tile: Tile) -> list[Tensor]:
        """Masks for `tile_weights`."""
        masks = []
        if group.padding is not None:
            masks.append(group.padding[..., tile.first : tile.last])
        if tile.hidden is not None:
            masks.append(tile.hidden[None, None])
        return masks

    def weights(self, content, place, k, group: Group, tile: Tile) -> Tensor:
        """(N, c, m), from a group's operands."""
        return tile_weights(
            content[:, tile.start : tile.stop],
            self.place_rows(place, tile),
            k[:, tile.first : tile.last],
            self.p[:, self.band(tile)],
            self.hidden(group, tile),
        )


def forward(
    content: Tensor,
    place: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor,
    lengths: Tensor,
    chunks: Chunks | None,
    dropout: float,
    seed: int,
    keep: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """The forward pass.

    Args:
        content: (B, T, H, Dh) scaled queries with the content bias.
        place: (B, T, H, Dh) scaled queries with the position bias.
        k: (B, T, H, Dh).
        v: (B, T, H, Dh).
        p: (2T-1, H, Dh).
        lengths: (B,).
        chunks: what a query sees.
        dropout: of the weights.
        seed: of the dropout.
        keep: return the weights.

    Returns:
        (B, T, H, Dh), zero beyond an item's length; and each tile's weights before dropout, if they
        are to be kept.
    """
    walk = _Walk(content, place, k, v, p, lengths, chunks)
    dropping = WeightDropout(dropout, seed, k.device) if dropout > 0 else None
    out, kept = torch.zeros_like(v, memory_format=torch.contiguous_format), []
    for group in walk.groups:
        qu, qw, keys, values = (walk.heads_first(x, group) for x in walk.operands)
        y = out[group.start : group.stop, : group.frames]
        for tile in walk.tiles(group):
            weights = walk.weights(qu, qw, keys, group, tile)
            if keep:
                kept.append(weights)
            if dropping is not None:
                weights = weights * dropping.mask(weights)
            part = torch.bmm(weights, values[:, tile.first : tile.last])  # (N, c, Dh)
            y[:, tile.start : tile.stop] = walk.frames_first(part)
        if group.padding is not None:
            y.masked_fill_(group.padding.view(len(y), -1, 1, 1), 0.0)
    return out, kept


def backward(
    content: Tensor,
    place: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor,
    out: Tensor,
    grad: Tensor,
    kept: Sequence[Tensor],
    lengths: Tensor,
    chunks: Chunks | None,
    dropout: float,
    seed: int,
) -> tuple[Tensor, ...]:
    """Gradients of the first five arguments, from `forward`'s results and its output's gradient."""
    walk = _Walk(content, place, k, v, p, lengths, chunks)
    dropping = WeightDropout(dropout, seed, k.device) if dropout > 0 else None
    remembered = iter(kept)
    # Sums over tiles of half precision are taken in float32.
    total = torch.float32 if k.dtype in HALF else k.dtype
    d_content, d_place, d_k, d_v = (torch.zeros_like(x) for x in walk.operands)
    d_p = torch.zeros_like(walk.p, dtype=total, memory_format=torch.contiguous_format)
    for group in walk.groups:
        qu, qw, keys, values = (walk.heads_first(x, group) for x in walk.operands)
        dy, y = walk.heads_first(grad, group), walk.heads_first(out, group)
        if group.padding is not None:
            padded = group.padding.view(1, -1, group.frames, 1)
            dy = dy.unflatten(0, (walk.heads, -1)).masked_fill(padded, 0.0).flatten(0, 1)
        # sum_j weight_ij dweight_ij of the softmax's gradient, with and without dropout.
        inner = (dy * y).sum(-1, keepdim=True).neg_()  # (N, frames, 1)
        dk = torch.zeros_like(keys, dtype=total, memory_format=torch.contiguous_format)
        dv = torch.zeros_like(values, dtype=total, memory_format=torch.contiguous_format)
        dqu, dqw = (x[group.start : group.stop, : group.frames] for x in (d_content, d_place))
        for tile in walk.tiles(group):
            rows, seen = slice(tile.start, tile.stop), slice(tile.first, tile.last)
            weights = next(remembered) if kept else walk.weights(qu, qw, keys, group, tile)
            dy_tile, v_tile = dy[:, rows], values[:, seen].transpose(1, 2)
            if dropping is None:
                _add_product(dv, seen, weights, dy_tile)
                slope = torch.baddbmm(inner[:, rows], dy_tile, v_tile)  # (N, c, m)
            else:
                mask = dropping.mask(weights)
                _add_product(dv, seen, weights * mask, dy_tile)
                slope = torch.bmm(dy_tile, v_tile).mul_(mask).add_(inner[:, rows])
            # The scores' gradient is written by key and read by distance.
            queries, key_count = weights.shape[1:]
            d_distance = weights.new_zeros(len(weights), queries, queries + key_count - 1)
            d_scores = by_key(d_distance, key_count)
            torch.mul(slope, weights, out=d_scores)

            part = torch.bmm(d_scores, keys[:, seen])  # (N, c, Dh)
            dqu[:, rows] = walk.frames_first(part)
            _add_product(dk, seen, d_scores, qu[:, rows])
            d_distance = d_distance.view(walk.heads, -1, d_distance.shape[2])  # (H, G c, W)
            band = walk.band(tile)
            part = torch.bmm(d_distance, walk.p[:, band]).view(part.shape)
            dqw[:, rows] = walk.frames_first(part)
            _add_product(d_p, band, d_distance, walk.place_rows(qw, tile).flatten(1, 2))
        for whole, sums in ((d_k, dk), (d_v, dv)):
            whole[group.start : group.stop, : group.frames] = walk.frames_first(sums)
    return d_content, d_place, d_k, d_v, d_p.transpose(0, 1).to(p.dtype)


def _add_product(sums: Tensor, rows: slice, a: Tensor, b: Tensor) -> None:
    """sums[:, rows] += a^T b, each a batch of matrices."""
    if sums.dtype == a.dtype and rows == slice(0, sums.shape[1]):
        sums.baddbmm_(a.transpose(1, 2), b)
    else:
        sums[:, rows] += torch.bmm(a.transpose(1, 2), b)


class RelativeAttention(torch.autograd.Function):
    """`forward` and `backward`; short items keep their weights, long ones compute them twice."""

    @staticmethod
    def forward(ctx, content, place, k, v, p, lengths, chunks, dropout, seed):
        frames, heads = k.shape[1:3]
        keep = heads * frames * frames <= KEPT_WEIGHTS
        arguments = content, place, k, v, p, lengths, chunks, dropout, seed
        out, kept = forward(*arguments, keep=keep)
        # The weights too, and not as an attribute: checkpointing could not let go of them.
        ctx.save_for_backward(content, place, k, v, p, out, lengths, *kept)
        ctx.settings = chunks, dropout, seed
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        content, place, k, v, p, out, lengths, *kept = ctx.saved_tensors
        saved = content, place, k, v, p, out
        with torch.autocast(grad.device.type, enabled=False):
            grads = backward(*saved, grad, kept, lengths, *ctx.settings)
        return *grads, None, None, None, None
