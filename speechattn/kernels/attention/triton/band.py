"""Scores by distance and scores by key, a tile at a time.

A tile of N queries and N keys has 2N - 1 distances, the columns of two blocks (N, N) of products.
From distances to keys each query's row is rotated one place further. Here N = BLOCK.
"""

import triton
import triton.language as tl

from speechattn.kernels.attention.triton.common import load


@triton.jit
def _rotate(x, by, BLOCK: tl.constexpr):
    """Rotate row r of x (BLOCK, BLOCK) to the left by by[r, 0] + its columns, 0 to 2 BLOCK - 1."""
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    place = row * BLOCK + (by + column) % BLOCK
    # A flat gather is one store to shared memory and one load. Along an axis, Triton would go
    # through registers, with dozens of shuffles and spills.
    flat = tl.gather(tl.reshape(x, (BLOCK * BLOCK,)), tl.reshape(place, (BLOCK * BLOCK,)), 0)
    return tl.reshape(flat, (BLOCK, BLOCK))


@triton.jit
def by_key(near, far, BLOCK: tl.constexpr):
    """Return scores of a tile by key, from those by distance, (BLOCK, BLOCK) each.

    Distance c of [near, far] is row T - BLOCK + first key - first query + c of p, so that query r
    has key x at c = BLOCK - 1 - r + x. A row needs each column of one of the two blocks.
    """
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    needed = tl.where(column >= BLOCK - 1 - row, near, far)
    return _rotate(needed, BLOCK - 1 - row, BLOCK)


@triton.jit
def by_distance(x, BLOCK: tl.constexpr):
    """Return (near, far) of scores by key, zero where a row has no key at a distance."""
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    rotated = _rotate(x, row + 1, BLOCK)
    near = tl.where(column >= BLOCK - 1 - row, rotated, 0.0)
    return near, rotated - near


@triton.jit
def to_distance(first, second, BLOCK: tl.constexpr):
    """Return products of queries with two blocks of keys, by distance.

    Distance c of query r is at key 1 + c + r of [first, second].
    """
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    needed = tl.where(column >= 1 + row, first, second)
    return _rotate(needed, row + 1, BLOCK)


@triton.jit
def biased(q, bias, h, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Add the bias (H, Dh) of their head to queries, in the dtype of the queries."""
    d = tl.arange(0, BLOCK_D)
    bias = tl.load(bias + h * DEPTH + d, mask=d < DEPTH, other=0.0)
    return (q.to(tl.float32) + bias.to(tl.float32)[None, :]).to(q.dtype)


@triton.jit
def distances(p, h, first, frames, heads, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr,
               BLOCK: tl.constexpr):  # fmt: skip
    """Load rows of p from `first` on, zero where there are none."""
    r = first + tl.arange(0, BLOCK)
    return load(p, 0, h, r, 2 * frames - 1, 2 * frames - 1, heads, DEPTH, BLOCK_D)
