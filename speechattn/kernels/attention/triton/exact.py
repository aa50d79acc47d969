"""Exact softmax attention for GPUs (FlashAttention-2, 2307.08691, sections 3.1 and 3.2).

A program takes a tile of queries and goes through the keys that they see, with the largest score
and the sum of weights so far; it stores the log-sum-exp of each query. The backward pass computes
the weights again, once by queries (dq) and once by keys (dk, dv), which costs two products more
than adding up dq with atomics, and gives the same numbers every time.
"""

import math
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechattn.kernels.attention.dropout import draw_seed
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


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    chunks: Chunks | None = None,
    dropout: float = 0.0,
    query_lengths: Tensor | None = None,
    window: tuple[int, int] | None = None,
    sink: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """Compute `speechattn.kernels.attention.exact.attention`; dropout draws other numbers.

    Args:
        window: frames that a query sees to the left and right of its own, in place of chunks.
        sink: (H,) the score of one more key per head, whose value is zero (gpt-oss, 2508.10925,
            section 2.2; not the sink of 2309.17453, which is the first frames).

    Returns:
        (B, Tq, H, Dh), zero for queries that are not real and for those that see no key.

    Raises:
        ValueError: float64, or chunks or a window with Tq unlike Tk.
    """
    if (chunks is not None or window is not None) and q.shape[1] != k.shape[1]:
        raise ValueError(f"attention: chunks and windows want as many queries as keys, not "
                         f"{q.shape[1]} and {k.shape[1]}")  # fmt: skip
    refuse_double("attention", q)
    seed = draw_seed() if dropout > 0 else 0
    if query_lengths is None:
        query_lengths = torch.full_like(lengths, q.shape[1])
    key_range = KeyRange.make(chunks, window)
    tensors = q, k, v, lengths, query_lengths, sink, slopes
    return Attention.apply(*tensors, key_range, dropout, seed)[0]


class Attention(torch.autograd.Function):
    """The output, and the log-sum-exp of scores to the base of 2, (B, H, Tq), infinity if none."""

    @staticmethod
    def forward(ctx, q, k, v, lengths, query_lengths, sink, slopes, key_range, dropout, seed):
        ctx.set_materialize_grads(False)
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        batch, queries, heads, depth = q.shape
        slopes = None if slopes is None else slopes.float().contiguous()
        shared = _shared(q, k, slopes, key_range, dropout, seed)
        out = torch.empty_like(q)
        lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
        if out.numel() > 0:
            grid = partial(tiles, queries, "BLOCK_M", heads, batch)
            with torch.cuda.device_of(q):  # Triton launches on the current one
                _forward[grid](q, k, v, sink, lengths, query_lengths, out, lse,
                               HAS_SINK=sink is not None, **shared)  # fmt: skip
        ctx.save_for_backward(q, k, v, lengths, query_lengths, sink, slopes, out, lse)
        ctx.settings = key_range, dropout, seed
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_lse):
        q, k, v, lengths, query_lengths, sink, slopes, out, lse = ctx.saved_tensors
        grad = torch.zeros_like(out) if grad is None else grad.contiguous()
        if grad_lse is not None:
            grad_lse = grad_lse.contiguous()
        batch, queries, heads, _ = q.shape
        keys, key_heads = k.shape[1:3]
        shared = _shared(q, k, slopes, *ctx.settings)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        delta = torch.empty_like(lse)
        inputs = q, k, v, lengths, query_lengths, lse, delta, grad
        if q.numel() > 0:
            grid = partial(tiles, queries, "BLOCK_M", heads, batch)
            _backward_queries[grid](*inputs, out, grad_lse, dq,
                                    HAS_DLSE=grad_lse is not None, **shared)  # fmt: skip
            if keys > 0:
                grid = partial(tiles, keys, "BLOCK_N", key_heads, batch)
                _backward_keys[grid](*inputs, dk, dv, **shared)
        dsink = None
        if sink is not None:
            # The sink's weight times its value, zero, less the mean: -delta.
            weights = torch.exp2(sink.float()[:, None] * math.log2(math.e) - lse)
            dsink = -(weights * delta).sum((0, 2)).to(sink.dtype)
        return dq, dk, dv, None, None, dsink, None, None, None, None


def _shared(
    q: Tensor, k: Tensor, slopes: Tensor | None, key_range: KeyRange, dropout: float, seed: int
) -> dict:
    """Return the arguments of all three kernels."""
    seen = k.shape[1] if key_range.reach is None else min(k.shape[1], key_range.reach)
    return {
        "heads": q.shape[2],
        "queries": q.shape[1],
        "keys": k.shape[1],
        "scale": 1 / math.sqrt(q.shape[3]),
        "slopes": slopes,
        "seed": seed,
        "drop": dropout,
        "length": bucket(seen),
        "SHARED": q.shape[2] // k.shape[2],
        "DEPTH": q.shape[3],
        "BLOCK_D": padded(q.shape[3]),
        "HAS_SLOPES": slopes is not None,
        "DROPPED": dropout > 0,
        "CAUSAL": key_range.causal,
        "PRECISION": precision(),
        **key_range.arguments(),
    }


# Tiles of queries and keys, warps, stages. The large ones need Hopper's shared memory and its
# products of 64 rows per warp group; those that do not fit a GPU drop out of the tuning.
_TILE = ["BLOCK_M", "BLOCK_N"]
_FORWARD = sized(
    _TILE,
    (128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 4, 4), (128, 64, 4, 3),
    (128, 32, 4, 3), (64, 128, 4, 3), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 2),
)  # fmt: skip
_BACKWARD = sized(
    _TILE,
    (128, 64, 8, 2), (64, 128, 8, 2), (128, 128, 8, 1), (64, 64, 4, 3), (64, 64, 4, 2),
    (64, 64, 4, 1), (64, 32, 4, 2), (32, 64, 4, 2), (32, 32, 4, 2),
)  # fmt: skip
_KEY = ["length", "DEPTH", "SHARED", "HAS_SLOPES", "HAS_LEFT", "HAS_RIGHT", "CAUSAL", "DROPPED"]


@triton.jit
def _phases(
    start, stop, n, size, left, right, BLOCK_N: tl.constexpr, HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Cut the keys of the queries from `start` to `stop` at a, c, e and f.

    [a, c) and [e, f) need a mask. All but f are multiples of a tile.
    """
    a, f = visible_keys(start, stop, n, size, left, right, HAS_LEFT, HAS_RIGHT, CAUSAL)
    a = a // BLOCK_N * BLOCK_N
    # The keys of the last query begin last, those of the first end first.
    c, _ = visible_keys(stop - 1, stop, n, size, left, right, HAS_LEFT, HAS_RIGHT, CAUSAL)
    _, e = visible_keys(start, start + 1, n, size, left, right, HAS_LEFT, HAS_RIGHT, CAUSAL)
    c = tl.minimum(tl.cdiv(c, BLOCK_N), tl.cdiv(f, BLOCK_N)) * BLOCK_N
    c = tl.maximum(c, a)
    e = tl.maximum(e // BLOCK_N * BLOCK_N, c)
    return a, c, e, f


@triton.jit
def _lowered(scores, i, j, slopes, h, ahead, HAS_SLOPES: tl.constexpr):
    """Subtract slope times distance from the scores; query i is at key i + ahead."""
    if HAS_SLOPES:
        scores -= tl.load(slopes + h) * LOG2E * tl.abs(i + ahead - j)
    return scores


@tuned(_FORWARD, _KEY)
@triton.jit
def _forward(
    q, k, v, sink, lengths, query_lengths, out, lse, slopes, heads, queries, keys, size, left,
    right, scale, seed, drop, length, HAS_SINK: tl.constexpr, SHARED: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr, CAUSAL: tl.constexpr, DROPPED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute a tile of queries of a head."""
    start, h, b = tl.program_id(0) * BLOCK_M, tl.program_id(1), tl.program_id(2)
    n = tl.load(lengths + b).to(tl.int32)
    m = tl.load(query_lengths + b).to(tl.int32)
    i = start + tl.arange(0, BLOCK_M)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    top = tl.full((BLOCK_M,), -INFINITY, tl.float32)
    if start < m:
        query = load(q, b, h, i, m, queries, heads, DEPTH, BLOCK_D)
        a, c, e, f = _phases(start, tl.minimum(start + BLOCK_M, m), n, size, left, right, BLOCK_N,
                             HAS_LEFT, HAS_RIGHT, CAUSAL)  # fmt: skip
        # Before what all of the tile's queries see, within it and after it.
        for phase in tl.static_range(0 if HAS_LEFT else 1, 3):
            begin, end = (a, c) if phase == 0 else ((c, e) if phase == 1 else (e, f))
            for first in range(begin, end, BLOCK_N):
                j = first + tl.arange(0, BLOCK_N)
                key = load(k, b, h // SHARED, j, n, keys, heads // SHARED, DEPTH, BLOCK_D)
                scores = product(query, tl.trans(key), PRECISION) * (scale * LOG2E)
                scores = _lowered(scores, i[:, None], j[None, :], slopes, h, keys - queries,
                                  HAS_SLOPES)  # fmt: skip
                if phase != 1:
                    mask = visible(i[:, None], j[None, :], n, size, left, right, HAS_LEFT,
                                   HAS_RIGHT, CAUSAL)  # fmt: skip
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
        if HAS_SINK:
            score = tl.load(sink + h).to(tl.float32) * LOG2E
            base = tl.maximum(top, score)
            shrink = tl.exp2(top - base)
            acc = acc * shrink[:, None]
            total = total * shrink + tl.exp2(score - base)
            top = base
    total = tl.where(i < m, total, 0.0)
    nothing = total == 0.0
    acc = tl.where(nothing[:, None], 0.0, acc / tl.where(nothing, 1.0, total)[:, None])
    store(out, acc, b, h, i, queries, heads, DEPTH, BLOCK_D)
    # Infinity makes all weights zero in the backward pass.
    total = tl.where(nothing, INFINITY, top + tl.log2(tl.where(nothing, 1.0, total)))
    tl.store(lse + (b * heads + h) * queries + i, total, mask=i < queries)


@tuned(_BACKWARD, _KEY)
@triton.jit
def _backward_queries(
    q, k, v, lengths, query_lengths, lse, delta, dout, out, dlse, dq, slopes, heads, queries, keys,
    size, left, right, scale, seed, drop, length, HAS_DLSE: tl.constexpr, SHARED: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr, CAUSAL: tl.constexpr, DROPPED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute dq of a tile of queries, and `delta`, output times gradient less lse's, for keys."""
    start, h, b = tl.program_id(0) * BLOCK_M, tl.program_id(1), tl.program_id(2)
    n = tl.load(lengths + b).to(tl.int32)
    m = tl.load(query_lengths + b).to(tl.int32)
    i = start + tl.arange(0, BLOCK_M)
    grad = load(dout, b, h, i, m, queries, heads, DEPTH, BLOCK_D)
    mean = load(out, b, h, i, m, queries, heads, DEPTH, BLOCK_D)
    mean = tl.sum(mean.to(tl.float32) * grad.to(tl.float32), 1)
    row = (b * heads + h) * queries + i
    if HAS_DLSE:
        mean -= tl.load(dlse + row, mask=i < m, other=0.0) * LOG2E
    tl.store(delta + row, mean, mask=i < queries)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if start < m:
        query = load(q, b, h, i, m, queries, heads, DEPTH, BLOCK_D)
        norm = tl.load(lse + row, mask=i < m, other=INFINITY)
        a, c, e, f = _phases(start, tl.minimum(start + BLOCK_M, m), n, size, left, right, BLOCK_N,
                             HAS_LEFT, HAS_RIGHT, CAUSAL)  # fmt: skip
        for phase in tl.static_range(0 if HAS_LEFT else 1, 3):  # as in `_forward`
            begin, end = (a, c) if phase == 0 else ((c, e) if phase == 1 else (e, f))
            for first in range(begin, end, BLOCK_N):
                j = first + tl.arange(0, BLOCK_N)
                key = load(k, b, h // SHARED, j, n, keys, heads // SHARED, DEPTH, BLOCK_D)
                value = load(v, b, h // SHARED, j, n, keys, heads // SHARED, DEPTH, BLOCK_D)
                scores = product(query, tl.trans(key), PRECISION) * (scale * LOG2E)
                scores = _lowered(scores, i[:, None], j[None, :], slopes, h, keys - queries,
                                  HAS_SLOPES)  # fmt: skip
                if phase != 1:
                    mask = visible(i[:, None], j[None, :], n, size, left, right, HAS_LEFT,
                                   HAS_RIGHT, CAUSAL)  # fmt: skip
                    scores = tl.where(mask, scores, -INFINITY)
                weights = tl.exp2(scores - norm[:, None])
                dweights = product(grad, tl.trans(value), PRECISION)
                if DROPPED:
                    dweights *= dropout_factor(
                        i[:, None], j[None, :], seed, drop, b, h, keys, heads
                    )
                dscores = weights * (dweights - mean[:, None])
                acc += product(dscores.to(key.dtype), key, PRECISION)
    store(dq, acc * scale, b, h, i, queries, heads, DEPTH, BLOCK_D)


@tuned(_BACKWARD, _KEY)
@triton.jit
def _backward_keys(
    q, k, v, lengths, query_lengths, lse, delta, dout, dk, dv, slopes, heads, queries, keys, size,
    left, right, scale, seed, drop, length, SHARED: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_D: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr, CAUSAL: tl.constexpr, DROPPED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv of a tile of keys, over the heads that share them. Scores are (N, M)."""
    first, kh, b = tl.program_id(0) * BLOCK_N, tl.program_id(1), tl.program_id(2)
    n = tl.load(lengths + b).to(tl.int32)
    m = tl.load(query_lengths + b).to(tl.int32)
    j = first + tl.arange(0, BLOCK_N)
    dkey = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dvalue = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    if first < n:
        key = load(k, b, kh, j, n, keys, heads // SHARED, DEPTH, BLOCK_D)
        value = load(v, b, kh, j, n, keys, heads // SHARED, DEPTH, BLOCK_D)
        begin, end = queries_seeing(first, tl.minimum(first + BLOCK_N, n), m, size, left, right,
                                    HAS_LEFT, HAS_RIGHT, CAUSAL)  # fmt: skip
        begin = begin // BLOCK_M * BLOCK_M
        for h in range(kh * SHARED, (kh + 1) * SHARED):
            for start in range(begin, end, BLOCK_M):
                i = start + tl.arange(0, BLOCK_M)
                row = (b * heads + h) * queries + i
                query = load(q, b, h, i, m, queries, heads, DEPTH, BLOCK_D)
                grad = load(dout, b, h, i, m, queries, heads, DEPTH, BLOCK_D)
                norm = tl.load(lse + row, mask=i < m, other=INFINITY)
                mean = tl.load(delta + row, mask=i < m, other=0.0)
                scores = product(key, tl.trans(query), PRECISION) * (scale * LOG2E)
                scores = _lowered(scores, i[None, :], j[:, None], slopes, h, keys - queries,
                                  HAS_SLOPES)  # fmt: skip
                # Padding keys too, whose sums would otherwise be infinite.
                mask = visible(i[None, :], j[:, None], n, size, left, right, HAS_LEFT, HAS_RIGHT,
                               CAUSAL)  # fmt: skip
                scores = tl.where(mask, scores, -INFINITY)
                weights = tl.exp2(scores - norm[None, :])
                dweights = product(value, tl.trans(grad), PRECISION)
                used = weights
                if DROPPED:
                    keep = dropout_factor(i[None, :], j[:, None], seed, drop, b, h, keys, heads)
                    used = weights * keep
                    dweights *= keep
                dvalue += product(used.to(grad.dtype), grad, PRECISION)
                dscores = weights * (dweights - mean[None, :])
                dkey += product(dscores.to(query.dtype), query, PRECISION)
    store(dk, dkey * scale, b, kh, j, keys, heads // SHARED, DEPTH, BLOCK_D)
    store(dv, dvalue, b, kh, j, keys, heads // SHARED, DEPTH, BLOCK_D)
