"""Attention over content and relative position for GPUs (Transformer-XL, 1901.02860, section 3.3).

    score[i, j] = ((q_i + u) . k_j + (q_i + w) . p_(i-j)) / sqrt(Dh)

The scores of a tile of N queries and N keys are two products of tensor cores, of the queries with
the keys and with the tile's rows of p. These are 2N - 1 distances, a band that overlaps by N rows
with that of the next tile of keys, so that a tile costs N new rows, not 2N. The second product is
by distance; `by_key` converts it to keys by rotating each row, one exchange through shared memory.
The backward pass is three kernels:

- by queries: gradients of q, u and w. For the sums over the band of p, `by_distance` rotates the
  gradient of the scores; the halves of neighbouring tiles are added before the product.
- by keys: gradients of k and v.
- by distance: the gradient of p, which sums over items and along diagonals. A program has N
  distances and goes along its diagonals in the coordinates (query, distance), where the content
  term is rotated and not the position term. This is six products per tile. Atomic additions in the
  kernel of queries would be one, but every item and every tile of queries would add to the same
  2T-1 rows, and the sum would be different every time.

Legend: see `speechattn.kernels.attention.triton`; here a tile has N queries and N keys.
"""

import math
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechattn.kernels.attention.dropout import draw_seed
from speechattn.kernels.attention.triton.band import (
    biased,
    by_distance,
    by_key,
    distances,
    to_distance,
)
from speechattn.kernels.attention.triton.common import (
    INFINITY,
    LOG2E,
    KeyRange,
    bucket,
    dropout_factor,
    load,
    padded,
    precision,
    product,
    queries_seeing,
    refuse_double,
    sized,
    store,
    tiles,
    tuned,
    visible,
    visible_keys,
)
from speechattn.masks import Chunks

# Programs that share the items of the gradient of p; each has a sum of its own.
_SPLITS = 4


def relative_attention(
    *tensors: Tensor, lengths: Tensor, chunks: Chunks | None = None, dropout: float = 0.0
) -> Tensor:
    """Compute `speechattn.kernels.attention.relative.relative_attention`, with another dropout."""
    refuse_double("relative attention", tensors[0])
    seed = draw_seed() if dropout > 0 else 0
    return _RelativeAttention.apply(*tensors, lengths, KeyRange.make(chunks), dropout, seed)


class _RelativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, p, u, w, lengths, key_range, dropout, seed):
        tensors = [x.contiguous() for x in (q, k, v, p, u, w)]
        batch, frames, heads, _ = q.shape
        out = torch.empty_like(tensors[0])
        lse = q.new_empty(batch, heads, frames, dtype=torch.float32)
        if out.numel() > 0:
            grid = partial(tiles, frames, "BLOCK", heads, batch)
            shared = _shared(q, key_range, dropout, seed)
            with torch.cuda.device_of(q):  # Triton launches on the current one
                _forward[grid](*tensors, lengths, out, lse, **shared)
        ctx.save_for_backward(*tensors, lengths, out, lse)
        ctx.settings = key_range, dropout, seed
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        *tensors, lengths, out, lse = ctx.saved_tensors
        q, k, v, p, u, w = tensors
        batch, frames, heads, depth = q.shape
        if q.numel() == 0:
            return *(torch.zeros_like(x) for x in tensors), None, None, None, None
        grad = grad.contiguous()
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        delta = torch.empty_like(lse)
        # Sums over a tile's queries, whichever size is chosen, for the gradients of u and w.
        most = triton.cdiv(frames, min(c.kwargs["BLOCK"] for c in _backward_queries.configs))
        sums = lse.new_zeros(2, batch, heads, most, depth)
        splits = min(batch, _SPLITS)
        dp = lse.new_empty(splits, *p.shape)
        shared = _shared(q, *ctx.settings)
        inputs = *tensors, lengths, lse, delta, grad
        grid = partial(tiles, frames, "BLOCK", heads, batch)
        _backward_queries[grid](*inputs, out, dq, sums, tiles=most, **shared)
        _backward_keys[grid](*inputs, dk, dv, **shared)
        # Distances to keys before a query and to those after it.
        grid = lambda sizes: (2 * triton.cdiv(frames, sizes["BLOCK"]), heads, splits)  # noqa: E731
        _backward_distances[grid](*inputs, dp, batch=batch, **shared)
        du, dw = sums.sum((1, 3)).to(u.dtype)
        return dq, dk, dv, dp.sum(0).to(p.dtype), du, dw, None, None, None, None


def _shared(q: Tensor, key_range: KeyRange, dropout: float, seed: int) -> dict:
    """Return the arguments of all kernels."""
    return {
        "heads": q.shape[2],
        "frames": q.shape[1],
        "scale": 1 / math.sqrt(q.shape[3]),
        "seed": seed,
        "drop": dropout,
        "length": bucket(q.shape[1]),
        "DEPTH": q.shape[3],
        "BLOCK_D": padded(q.shape[3]),
        "DROPPED": dropout > 0,
        "PRECISION": precision(),
        **key_range.arguments(),
    }


# Frames of a tile, warps, stages. Shared memory holds a tile's float32 scores for the rotation
# besides the loads. Registers are scarce: tiles of 64 suit Hopper, whose products read their
# operands from shared memory; heads of 128 and float32 need tiles of 32 or 16.
_FORWARD = sized(
    ["BLOCK"],
    (128, 8, 2), (128, 8, 1), (64, 8, 2), (64, 4, 3), (64, 4, 2), (32, 8, 2), (32, 4, 2),
)  # fmt: skip
_BACKWARD = sized(
    ["BLOCK"],
    (64, 8, 2), (64, 8, 1), (64, 4, 2), (32, 8, 2), (32, 4, 2), (32, 4, 1), (16, 4, 2),
)  # fmt: skip
_KEY = ["length", "DEPTH", "HAS_LEFT", "HAS_RIGHT", "DROPPED"]


@tuned(_FORWARD, _KEY)
@triton.jit
def _forward(
    q, k, v, p, u, w, lengths, out, lse, heads, frames, size, left, right, scale, seed, drop,
    length, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr, DROPPED: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute a tile of queries of a head."""
    start, h, b = tl.program_id(0) * BLOCK, tl.program_id(1), tl.program_id(2)
    n = tl.load(lengths + b).to(tl.int32)
    i = start + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    top = tl.full((BLOCK,), -INFINITY, tl.float32)
    if start < n:
        query = load(q, b, h, i, n, frames, heads, DEPTH, BLOCK_D)
        content = biased(query, u, h, DEPTH, BLOCK_D)
        place = biased(query, w, h, DEPTH, BLOCK_D)
        first, last = visible_keys(start, tl.minimum(start + BLOCK, n), n, size, left, right,
                                   HAS_LEFT, HAS_RIGHT)  # fmt: skip
        first = first // BLOCK * BLOCK
        band = distances(p, h, frames - BLOCK + first - start, frames, heads, DEPTH, BLOCK_D,
                          BLOCK)  # fmt: skip
        near = product(place, tl.trans(band), PRECISION)
        for begin in range(first, last, BLOCK):
            j = begin + tl.arange(0, BLOCK)
            band = distances(p, h, frames + begin - start, frames, heads, DEPTH, BLOCK_D, BLOCK)
            far = product(place, tl.trans(band), PRECISION)
            key = load(k, b, h, j, n, frames, heads, DEPTH, BLOCK_D)
            scores = product(content, tl.trans(key), PRECISION) + by_key(near, far, BLOCK)
            mask = visible(i[:, None], j[None, :], n, size, left, right, HAS_LEFT, HAS_RIGHT)
            scores = tl.where(mask, scores * (scale * LOG2E), -INFINITY)
            higher = tl.maximum(top, tl.max(scores, 1))
            base = tl.where(higher == -INFINITY, 0.0, higher)  # nothing seen yet: no inf - inf
            weights = tl.exp2(scores - base[:, None])
            shrink = tl.exp2(top - base)
            total = total * shrink + tl.sum(weights, 1)
            if DROPPED:
                weights *= dropout_factor(i[:, None], j[None, :], seed, drop, b, h, frames, heads)
            value = load(v, b, h, j, n, frames, heads, DEPTH, BLOCK_D)
            acc = acc * shrink[:, None]
            acc += product(weights.to(value.dtype), value, PRECISION)
            top = higher
            near = far
    total = tl.where(i < n, total, 0.0)
    nothing = total == 0.0
    acc = tl.where(nothing[:, None], 0.0, acc / tl.where(nothing, 1.0, total)[:, None])
    store(out, acc, b, h, i, frames, heads, DEPTH, BLOCK_D)
    # Infinity makes all weights zero in the backward pass.
    total = tl.where(nothing, INFINITY, top + tl.log2(tl.where(nothing, 1.0, total)))
    tl.store(lse + (b * heads + h) * frames + i, total, mask=i < frames)


@tuned(_BACKWARD, _KEY, reset=("sums",))
@triton.jit
def _backward_queries(
    q, k, v, p, u, w, lengths, lse, delta, dout, out, dq, sums, heads, frames, tiles, size, left,
    right, scale, seed, drop, length, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, DROPPED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute dq of a tile of queries, its part of du and dw, and `delta`, output times gradient.

    `sums` is (2, B, H, tiles, Dh).
    """
    tile, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tile * BLOCK
    n = tl.load(lengths + b).to(tl.int32)
    i = start + tl.arange(0, BLOCK)
    grad = load(dout, b, h, i, n, frames, heads, DEPTH, BLOCK_D)
    mean = load(out, b, h, i, n, frames, heads, DEPTH, BLOCK_D)
    mean = tl.sum(mean.to(tl.float32) * grad.to(tl.float32), 1)
    row = (b * heads + h) * frames + i
    tl.store(delta + row, mean, mask=i < frames)
    dcontent = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    dplace = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    if start < n:
        query = load(q, b, h, i, n, frames, heads, DEPTH, BLOCK_D)
        norm = tl.load(lse + row, mask=i < n, other=INFINITY)
        content = biased(query, u, h, DEPTH, BLOCK_D)
        place = biased(query, w, h, DEPTH, BLOCK_D)
        first, last = visible_keys(start, tl.minimum(start + BLOCK, n), n, size, left, right,
                                   HAS_LEFT, HAS_RIGHT)  # fmt: skip
        first = first // BLOCK * BLOCK
        band = distances(p, h, frames - BLOCK + first - start, frames, heads, DEPTH, BLOCK_D,
                          BLOCK)  # fmt: skip
        near = product(place, tl.trans(band), PRECISION)
        waiting = tl.zeros((BLOCK, BLOCK), tl.float32)  # the last tile's part of `near`
        for begin in range(first, last, BLOCK):
            j = begin + tl.arange(0, BLOCK)
            # Loaded again, to save registers.
            before = distances(p, h, frames - BLOCK + begin - start, frames, heads, DEPTH, BLOCK_D,
                                BLOCK)  # fmt: skip
            band = distances(p, h, frames + begin - start, frames, heads, DEPTH, BLOCK_D, BLOCK)
            far = product(place, tl.trans(band), PRECISION)
            key = load(k, b, h, j, n, frames, heads, DEPTH, BLOCK_D)
            value = load(v, b, h, j, n, frames, heads, DEPTH, BLOCK_D)
            scores = product(content, tl.trans(key), PRECISION) + by_key(near, far, BLOCK)
            mask = visible(i[:, None], j[None, :], n, size, left, right, HAS_LEFT, HAS_RIGHT)
            scores = tl.where(mask, scores * (scale * LOG2E), -INFINITY)
            weights = tl.exp2(scores - norm[:, None])
            dweights = product(grad, tl.trans(value), PRECISION)
            if DROPPED:
                dweights *= dropout_factor(i[:, None], j[None, :], seed, drop, b, h, frames, heads)
            dscores = weights * (dweights - mean[:, None])
            dcontent += product(dscores.to(key.dtype), key, PRECISION)
            dnear, dfar = by_distance(dscores, BLOCK)
            dplace += product((waiting + dnear).to(before.dtype), before, PRECISION)
            waiting = dfar
            near = far
        end = first + tl.cdiv(tl.maximum(last - first, 0), BLOCK) * BLOCK
        band = distances(p, h, frames - BLOCK + end - start, frames, heads, DEPTH, BLOCK_D, BLOCK)
        dplace += product(waiting.to(band.dtype), band, PRECISION)
    store(dq, (dcontent + dplace) * scale, b, h, i, frames, heads, DEPTH, BLOCK_D)
    d = tl.arange(0, BLOCK_D)
    items = tl.num_programs(2)
    part = sums + ((b * heads + h) * tiles + tile) * DEPTH + d
    tl.store(part, tl.sum(dcontent, 0) * scale, mask=d < DEPTH)
    tl.store(part + items * heads * tiles * DEPTH, tl.sum(dplace, 0) * scale, mask=d < DEPTH)


@tuned(_BACKWARD, _KEY)
@triton.jit
def _backward_keys(
    q, k, v, p, u, w, lengths, lse, delta, dout, dk, dv, heads, frames, size, left, right, scale,
    seed, drop, length, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr, DROPPED: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv of a tile of keys."""
    begin, h, b = tl.program_id(0) * BLOCK, tl.program_id(1), tl.program_id(2)
    n = tl.load(lengths + b).to(tl.int32)
    j = begin + tl.arange(0, BLOCK)
    dkey = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    dvalue = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    if begin < n:
        key = load(k, b, h, j, n, frames, heads, DEPTH, BLOCK_D)
        value = load(v, b, h, j, n, frames, heads, DEPTH, BLOCK_D)
        first, last = queries_seeing(begin, tl.minimum(begin + BLOCK, n), n, size, left, right,
                                     HAS_LEFT, HAS_RIGHT)  # fmt: skip
        for start in range(first // BLOCK * BLOCK, last, BLOCK):
            i = start + tl.arange(0, BLOCK)
            row = (b * heads + h) * frames + i
            query = load(q, b, h, i, n, frames, heads, DEPTH, BLOCK_D)
            grad = load(dout, b, h, i, n, frames, heads, DEPTH, BLOCK_D)
            norm = tl.load(lse + row, mask=i < n, other=INFINITY)
            mean = tl.load(delta + row, mask=i < n, other=0.0)
            content = biased(query, u, h, DEPTH, BLOCK_D)
            place = biased(query, w, h, DEPTH, BLOCK_D)
            band = distances(p, h, frames - BLOCK + begin - start, frames, heads, DEPTH, BLOCK_D,
                              BLOCK)  # fmt: skip
            near = product(place, tl.trans(band), PRECISION)
            band = distances(p, h, frames + begin - start, frames, heads, DEPTH, BLOCK_D, BLOCK)
            far = product(place, tl.trans(band), PRECISION)
            scores = product(content, tl.trans(key), PRECISION) + by_key(near, far, BLOCK)
            mask = visible(i[:, None], j[None, :], n, size, left, right, HAS_LEFT, HAS_RIGHT)
            scores = tl.where(mask, scores * (scale * LOG2E), -INFINITY)
            weights = tl.exp2(scores - norm[:, None])
            dweights = product(grad, tl.trans(value), PRECISION)
            used = weights
            if DROPPED:
                keep = dropout_factor(i[:, None], j[None, :], seed, drop, b, h, frames, heads)
                used = weights * keep
                dweights *= keep
            dvalue += product(tl.trans(used.to(grad.dtype)), grad, PRECISION)
            dscores = weights * (dweights - mean[:, None])
            dkey += product(tl.trans(dscores.to(content.dtype)), content, PRECISION)
    store(dk, dkey * scale, b, h, j, frames, heads, DEPTH, BLOCK_D)
    store(dv, dvalue, b, h, j, frames, heads, DEPTH, BLOCK_D)


@tuned(_BACKWARD, _KEY)
@triton.jit
def _backward_distances(
    q, k, v, p, u, w, lengths, lse, delta, dout, dp, heads, frames, batch, size, left, right, scale,
    seed, drop, length, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr, DROPPED: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute dp of a block of distances, over every splits-th item.

    Scores are (queries, distances).
    """
    number, h, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    # Rows r of p from T - BLOCK + ahead on: keys j = r - (T - 1) + i, ahead of their queries by
    # least to most. With queries from `start` on, keys are in the blocks at start + ahead - BLOCK
    # and start + ahead.
    ahead = (number + 1) * BLOCK - tl.cdiv(frames, BLOCK) * BLOCK
    least, most = ahead - BLOCK + 1, ahead
    band = distances(p, h, frames - BLOCK + ahead, frames, heads, DEPTH, BLOCK_D, BLOCK)
    dband = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    possible = True
    if HAS_LEFT:
        possible = most >= 1 - left - size
    if HAS_RIGHT:
        possible = possible & (least <= size - 1 + right)
    for b in range(split, batch, tl.num_programs(2)):
        n = tl.load(lengths + b).to(tl.int32)
        last = tl.where(possible, tl.minimum(n, n - least), 0)
        for start in range(tl.maximum(-most, 0), last, BLOCK):
            rows = tl.arange(0, BLOCK)
            i = start + rows
            j = i[:, None] + (least + rows)[None, :]
            row = (b * heads + h) * frames + i
            query = load(q, b, h, i, n, frames, heads, DEPTH, BLOCK_D)
            grad = load(dout, b, h, i, n, frames, heads, DEPTH, BLOCK_D)
            norm = tl.load(lse + row, mask=i < n, other=INFINITY)
            mean = tl.load(delta + row, mask=i < n, other=0.0)
            content = biased(query, u, h, DEPTH, BLOCK_D)
            place = biased(query, w, h, DEPTH, BLOCK_D)
            one = start + ahead - BLOCK + rows
            two = start + ahead + rows
            key = load(k, b, h, one, n, frames, heads, DEPTH, BLOCK_D)
            block = product(content, tl.trans(key), PRECISION)
            key = load(k, b, h, two, n, frames, heads, DEPTH, BLOCK_D)
            block = to_distance(block, product(content, tl.trans(key), PRECISION), BLOCK)
            scores = block + product(place, tl.trans(band), PRECISION)
            mask = visible(i[:, None], j, n, size, left, right, HAS_LEFT, HAS_RIGHT) & (j >= 0)
            scores = tl.where(mask, scores * (scale * LOG2E), -INFINITY)
            weights = tl.exp2(scores - norm[:, None])
            value = load(v, b, h, one, n, frames, heads, DEPTH, BLOCK_D)
            block = product(grad, tl.trans(value), PRECISION)
            value = load(v, b, h, two, n, frames, heads, DEPTH, BLOCK_D)
            dweights = to_distance(block, product(grad, tl.trans(value), PRECISION), BLOCK)
            if DROPPED:
                dweights *= dropout_factor(i[:, None], j, seed, drop, b, h, frames, heads)
            dscores = weights * (dweights - mean[:, None])
            dband += product(tl.trans(dscores.to(place.dtype)), place, PRECISION)
    r = frames - BLOCK + ahead + tl.arange(0, BLOCK)
    store(dp, dband * scale, split, h, r, 2 * frames - 1, heads, DEPTH, BLOCK_D)
