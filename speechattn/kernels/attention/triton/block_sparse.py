"""Softmax attention over chosen blocks of keys for GPUs.

FlashAttention-2 (2307.08691, section 3.1) over lists: for each block of queries its blocks of keys,
and backwards for each block of keys its blocks of queries. A program goes along one list, with
tiles of keys (or queries) gathered from as many blocks as fill them, so that blocks of 16 frames
still make whole products.
"""

import math
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechattn.kernels.attention.dropout import draw_seed
from speechattn.kernels.attention.triton.block_lists import before, block_lists, collected, line_of
from speechattn.kernels.attention.triton.common import (
    INFINITY,
    LOG2E,
    bucket,
    dropout_factor,
    load,
    padded,
    precision,
    product,
    refuse_double,
    sized,
    store_until,
    tuned,
)


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    layout: Tensor,
    block: int,
    causal: bool = False,
    dropout: float = 0.0,
    query_lengths: Tensor | None = None,
) -> Tensor:
    """Compute `speechattn.kernels.attention.block_sparse.block_sparse_attention`.

    With another dropout; the output is zero for queries that are not real.
    """
    refuse_double("block_sparse_attention", q)
    if query_lengths is None:
        query_lengths = torch.full_like(lengths, q.shape[1])
    if layout.dim() == 3:
        layout = layout[None]  # (L, H, Eq, Ek)
    seed = draw_seed() if dropout > 0 else 0
    return _Attention.apply(q, k, v, lengths, query_lengths, layout, block, causal, dropout, seed)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, lengths, query_lengths, layout, block, causal, dropout, seed):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        batch, queries, heads, _ = q.shape
        out = torch.empty_like(q)
        lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
        ctx.settings = block, causal, dropout, seed
        if out.numel() > 0:
            shared = _shared(q, k, layout, *ctx.settings)
            grid = partial(_grid, queries, block, "BLOCK_M", heads, batch)
            with torch.cuda.device_of(q):  # Triton launches on the current one
                lists, counts = block_lists(layout)
                _forward[grid](q, k, v, lengths, query_lengths, lists, counts, out, lse, **shared)
        ctx.save_for_backward(q, k, v, lengths, query_lengths, layout, out, lse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, k, v, lengths, query_lengths, layout, out, lse = ctx.saved_tensors
        grad = grad.contiguous()
        batch, queries, heads, _ = q.shape
        keys, key_heads = k.shape[1:3]
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        if q.numel() > 0:
            shared = _shared(q, k, layout, *ctx.settings)
            block = ctx.settings[0]
            delta = torch.empty_like(lse)
            inputs = q, k, v, lengths, query_lengths, lse, delta, grad
            # The lists are made again: they take more memory than the layout.
            grid = partial(_grid, queries, block, "BLOCK_M", heads, batch)
            with torch.cuda.device_of(q):
                _backward_queries[grid](*inputs, *block_lists(layout), out, dq, **shared)
                if keys > 0:
                    grid = partial(_grid, keys, block, "BLOCK_N", key_heads, batch)
                    across = block_lists(layout.transpose(2, 3))
                    _backward_keys[grid](*inputs, *across, dk, dv, **shared)
        return dq, dk, dv, None, None, None, None, None, None, None


def _shared(
    q: Tensor, k: Tensor, layout: Tensor, block: int, causal: bool, dropout: float, seed: int
) -> dict:
    """Return the arguments of all three kernels of attention."""
    return {
        "heads": q.shape[2],
        "queries": q.shape[1],
        "keys": k.shape[1],
        "above": layout.shape[2],
        "across": layout.shape[3],
        "block": block,
        "scale": 1 / math.sqrt(q.shape[3]),
        "seed": seed,
        "drop": dropout,
        "length": bucket(k.shape[1]),
        "EACH": len(layout) > 1,
        "SHARED": q.shape[2] // k.shape[2],
        "DEPTH": q.shape[3],
        "BLOCK_D": padded(q.shape[3]),
        "CAUSAL": causal,
        "DROPPED": dropout > 0,
        "PRECISION": precision(),
    }


def _grid(
    frames: int, block: int, name: str, heads: int, batch: int, sizes: dict
) -> tuple[int, int, int]:
    """Return the grid: tiles of `sizes[name]` frames, cut at the ends of blocks, heads, items."""
    return triton.cdiv(frames, block) * triton.cdiv(block, sizes[name]), heads, batch


# Tiles of queries and keys, warps, stages. A tile of queries (forwards and dq) or keys (dk and dv)
# ends with its block, so small ones are for small blocks.
_TILE = ["BLOCK_M", "BLOCK_N"]
_FORWARD = sized(
    _TILE,
    (128, 128, 8, 3), (128, 64, 8, 3), (128, 64, 4, 3), (64, 128, 4, 3), (64, 64, 4, 3),
    (64, 32, 4, 3), (32, 128, 4, 3), (32, 64, 4, 3), (16, 128, 4, 3), (16, 64, 2, 3),
    (16, 32, 2, 2),
)  # fmt: skip
_QUERIES = sized(
    _TILE,
    (128, 64, 8, 2), (64, 128, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (32, 128, 4, 2),
    (32, 64, 4, 2), (16, 128, 4, 2), (16, 64, 4, 2), (32, 32, 4, 2),
)  # fmt: skip
_KEYS = sized(
    _TILE,
    (64, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (128, 32, 4, 2),
    (64, 32, 4, 2), (128, 16, 4, 2), (64, 16, 4, 2), (32, 32, 4, 2),
)  # fmt: skip
_KEY = ["length", "block", "EACH", "SHARED", "DEPTH", "CAUSAL", "DROPPED"]


@triton.jit
def _own(tile, block, frames, BLOCK: tl.constexpr):
    """Return the block of a tile, the tile's frames, and one past the last frame of the block."""
    parts = tl.cdiv(block, BLOCK)
    own = tile // parts
    t = own * block + tile % parts * BLOCK + tl.arange(0, BLOCK)
    return own, t, tl.minimum((own + 1) * block, frames)


@triton.jit
def _visible(i, j, n, m, CAUSAL: tl.constexpr):
    """Return a mask, True where query i of m sees key j of n, within the layout."""
    mask = (j >= 0) & (j < n) & (i >= 0) & (i < m)
    if CAUSAL:
        mask = mask & (j <= i)
    return mask


@tuned(_FORWARD, _KEY)
@triton.jit
def _forward(
    q, k, v, lengths, query_lengths, lists, counts, out, lse, heads, queries, keys, above, across,
    block, scale, seed, drop, length, EACH: tl.constexpr, SHARED: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, CAUSAL: tl.constexpr, DROPPED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute a tile of queries of a block and a head."""
    h, b = tl.program_id(1), tl.program_id(2)
    own, i, stop = _own(tl.program_id(0), block, queries, BLOCK_M)
    n = tl.load(lengths + b).to(tl.int32)
    m = tl.minimum(tl.load(query_lengths + b).to(tl.int32), stop)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    top = tl.full((BLOCK_M,), -INFINITY, tl.float32)
    if tl.min(i, 0) < m:
        query = load(q, b, h, i, m, queries, heads, DEPTH, BLOCK_D)
        line, count = line_of(lists, counts, b, h, heads, own, above, across, EACH)
        limit = tl.cdiv(n, block)
        if CAUSAL:
            limit = tl.minimum(limit, own + 1)
        end = before(line, count, limit) * block
        for start in range(0, end, BLOCK_N):
            j = collected(line, start + tl.arange(0, BLOCK_N), end, block)
            key = load(k, b, h // SHARED, j, n, keys, heads // SHARED, DEPTH, BLOCK_D)
            scores = product(query, tl.trans(key), PRECISION) * (scale * LOG2E)
            mask = _visible(i[:, None], j[None, :], n, m, CAUSAL)
            scores = tl.where(mask, scores, -INFINITY)
            higher = tl.maximum(top, tl.max(scores, 1))
            base = tl.where(higher == -INFINITY, 0.0, higher)  # nothing seen: no inf - inf
            weights = tl.exp2(scores - base[:, None])
            shrink = tl.exp2(top - base)
            total = total * shrink + tl.sum(weights, 1)
            if DROPPED:
                weights *= dropout_factor(i[:, None], j[None, :], seed, drop, b, h, keys, heads)
            value = load(v, b, h // SHARED, j, n, keys, heads // SHARED, DEPTH, BLOCK_D)
            acc = acc * shrink[:, None]
            acc += product(weights.to(value.dtype), value, PRECISION)
            top = higher
    nothing = total == 0.0
    acc = tl.where(nothing[:, None], 0.0, acc / tl.where(nothing, 1.0, total)[:, None])
    store_until(out, acc, b, h, i, stop, queries, heads, DEPTH, BLOCK_D)
    # Infinity makes all weights zero in the backward pass.
    total = tl.where(nothing, INFINITY, top + tl.log2(tl.where(nothing, 1.0, total)))
    tl.store(lse + (b * heads + h) * queries + i, total, mask=i < stop)


@tuned(_QUERIES, _KEY)
@triton.jit
def _backward_queries(
    q, k, v, lengths, query_lengths, lse, delta, dout, lists, counts, out, dq, heads, queries,
    keys, above, across, block, scale, seed, drop, length, EACH: tl.constexpr,
    SHARED: tl.constexpr, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, CAUSAL: tl.constexpr,
    DROPPED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute dq of a tile of queries, and `delta`, output times gradient, for the keys."""
    h, b = tl.program_id(1), tl.program_id(2)
    own, i, stop = _own(tl.program_id(0), block, queries, BLOCK_M)
    n = tl.load(lengths + b).to(tl.int32)
    m = tl.minimum(tl.load(query_lengths + b).to(tl.int32), stop)
    grad = load(dout, b, h, i, m, queries, heads, DEPTH, BLOCK_D)
    mean = load(out, b, h, i, m, queries, heads, DEPTH, BLOCK_D)
    mean = tl.sum(mean.to(tl.float32) * grad.to(tl.float32), 1)
    row = (b * heads + h) * queries + i
    tl.store(delta + row, mean, mask=i < stop)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if tl.min(i, 0) < m:
        query = load(q, b, h, i, m, queries, heads, DEPTH, BLOCK_D)
        norm = tl.load(lse + row, mask=i < m, other=INFINITY)
        line, count = line_of(lists, counts, b, h, heads, own, above, across, EACH)
        limit = tl.cdiv(n, block)
        if CAUSAL:
            limit = tl.minimum(limit, own + 1)
        end = before(line, count, limit) * block
        for start in range(0, end, BLOCK_N):
            j = collected(line, start + tl.arange(0, BLOCK_N), end, block)
            key = load(k, b, h // SHARED, j, n, keys, heads // SHARED, DEPTH, BLOCK_D)
            value = load(v, b, h // SHARED, j, n, keys, heads // SHARED, DEPTH, BLOCK_D)
            scores = product(query, tl.trans(key), PRECISION) * (scale * LOG2E)
            mask = _visible(i[:, None], j[None, :], n, m, CAUSAL)
            weights = tl.exp2(tl.where(mask, scores, -INFINITY) - norm[:, None])
            dweights = product(grad, tl.trans(value), PRECISION)
            if DROPPED:
                dweights *= dropout_factor(i[:, None], j[None, :], seed, drop, b, h, keys, heads)
            dscores = weights * (dweights - mean[:, None])
            acc += product(dscores.to(key.dtype), key, PRECISION)
    store_until(dq, acc * scale, b, h, i, stop, queries, heads, DEPTH, BLOCK_D)


@tuned(_KEYS, _KEY)
@triton.jit
def _backward_keys(
    q, k, v, lengths, query_lengths, lse, delta, dout, lists, counts, dk, dv, heads, queries, keys,
    above, across, block, scale, seed, drop, length, EACH: tl.constexpr, SHARED: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, CAUSAL: tl.constexpr, DROPPED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv of a tile of keys, over the heads that share them. Scores are (N, M).

    The lists are of the blocks of queries that see a block of keys.
    """
    kh, b = tl.program_id(1), tl.program_id(2)
    own, j, stop = _own(tl.program_id(0), block, keys, BLOCK_N)
    n = tl.minimum(tl.load(lengths + b).to(tl.int32), stop)
    m = tl.load(query_lengths + b).to(tl.int32)
    dkey = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dvalue = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    if tl.min(j, 0) < n:
        key = load(k, b, kh, j, n, keys, heads // SHARED, DEPTH, BLOCK_D)
        value = load(v, b, kh, j, n, keys, heads // SHARED, DEPTH, BLOCK_D)
        for h in range(kh * SHARED, (kh + 1) * SHARED):
            line, count = line_of(lists, counts, b, h, heads, own, across, above, EACH)
            begin = tl.zeros((), tl.int32)
            if CAUSAL:
                begin = before(line, count, own)
            end = before(line, count, tl.cdiv(m, block)) * block
            for start in range(begin * block, end, BLOCK_M):
                i = collected(line, start + tl.arange(0, BLOCK_M), end, block)
                row = (b * heads + h) * queries + i
                query = load(q, b, h, i, m, queries, heads, DEPTH, BLOCK_D)
                grad = load(dout, b, h, i, m, queries, heads, DEPTH, BLOCK_D)
                real = (i >= 0) & (i < m)
                norm = tl.load(lse + row, mask=real, other=INFINITY)
                mean = tl.load(delta + row, mask=real, other=0.0)
                scores = product(key, tl.trans(query), PRECISION) * (scale * LOG2E)
                mask = _visible(i[None, :], j[:, None], n, m, CAUSAL)
                weights = tl.exp2(tl.where(mask, scores, -INFINITY) - norm[None, :])
                dweights = product(value, tl.trans(grad), PRECISION)
                used = weights
                if DROPPED:
                    keep = dropout_factor(i[None, :], j[:, None], seed, drop, b, h, keys, heads)
                    used = weights * keep
                    dweights *= keep
                dvalue += product(used.to(grad.dtype), grad, PRECISION)
                dscores = weights * (dweights - mean[None, :])
                dkey += product(dscores.to(query.dtype), query, PRECISION)
    store_until(dk, dkey * scale, b, kh, j, stop, keys, heads // SHARED, DEPTH, BLOCK_D)
    store_until(dv, dvalue, b, kh, j, stop, keys, heads // SHARED, DEPTH, BLOCK_D)
