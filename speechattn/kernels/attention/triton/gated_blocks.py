"""Blocks of gated linear attention in Triton: gates, scores within a block and their gradients.

Within a block frame j counts for frame i > j with exp(g_(j+1) + ... + g_i) in each channel. A
factor of i times a factor of j makes it a matrix product, as long as no channel's gates sum up
below -SPAN: the factors are relative to the middle of that sum. Blocks of stronger gates are
computed key by key instead, with the gates summed from each key on, so that no exponent is above
zero and a closed gate does not cancel the digits of open ones. Each block chooses for itself, on
the device. (The paper always computes the smallest blocks element by element, section 4.3.)

Legend: see `speechattn.kernels.attention.triton.gated_linear`.
"""

import triton
import triton.language as tl

from speechattn.kernels.attention.triton.common import LOG2E, load, places, product

# As in the portable kernel: float32 goes to exp(88), and two factors meet.
SPAN = tl.constexpr(40.0)
# Gates are clamped to this: exp(-100) is zero in float32.
CLOSED = tl.constexpr(-100.0)


@triton.jit
def rounded(x, HALF: tl.constexpr):
    """Round operands of products to bfloat16 if HALF, else not: float16 would overflow."""
    return x.to(tl.bfloat16) if HALF else x


@triton.jit
def frames_of(start, n, FLIP: tl.constexpr, BLOCK: tl.constexpr):
    """Return the frames (c,) of the block at place `start`; outside of [0, n) if none."""
    place = start + tl.arange(0, BLOCK)
    if FLIP:
        place = n - 1 - place
    return place


@triton.jit
def log_gates(gates, b, h, t, n, frames, heads, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load gates (c, Dk), to the base of 2; 0 where there is no frame."""
    g = load(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D)
    return tl.maximum(g, CLOSED) * LOG2E


@triton.jit
def gates_after(
    gates, b, h, start, n, frames, heads, FLIP: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the sum of the gates after each frame of a block, (c, Dk)."""
    t = frames_of(start + 1, n, FLIP, BLOCK)
    g = log_gates(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D)
    last = tl.arange(0, BLOCK)[:, None] == BLOCK - 1
    return tl.cumsum(tl.where(last, 0.0, g), 0, reverse=True)


@triton.jit
def key_of(
    k, gates, j, b, h, start, n, frames, heads, FLIP: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Load the j-th key of a block, (1, Dk), and the gates of the frame after it."""
    t = frames_of(start + j, n, FLIP, 1)
    key = load(k, b, h, t, n, frames, heads, DEPTH, BLOCK_D).to(tl.float32)
    t = frames_of(start + j + 1, n, FLIP, 1)
    return key, log_gates(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D)


@triton.jit
def columns_of(
    x, b, h, t, first, n, frames, heads, WIDTH: tl.constexpr, BLOCK_V: tl.constexpr
):  # fmt: skip
    """Return addresses of columns from `first` on of frames t of x (B, T, H, Dv), and a mask."""
    column = first + tl.arange(0, BLOCK_V)
    at = places(x, b, h, t, frames, heads, WIDTH, BLOCK_V) + first
    return at, ((t >= 0) & (t < n))[:, None] & (column < WIDTH)[None, :]


@triton.jit
def block_index(b, h, number, frames, heads, BLOCK: tl.constexpr):
    """Return the index of a block among (B, H, blocks)."""
    return (tl.cast(b, tl.int64) * heads + h) * tl.cdiv(frames, BLOCK) + number


@triton.jit
def state_of(
    states, block, first, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Return addresses (Dk, columns) of the state of a block, and a mask."""
    d, column = tl.arange(0, BLOCK_D), first + tl.arange(0, BLOCK_V)
    at = states + block * DEPTH * WIDTH + d[:, None] * WIDTH + column[None, :]
    return at, (d < DEPTH)[:, None] & (column < WIDTH)[None, :]


@triton.jit
def block_scores(
    k, gates, query, key, after, total, b, h, start, n, frames, heads, FLIP: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return scores (c, c) of frames with those before, and themselves unless flipped."""
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    scores = tl.zeros((BLOCK, BLOCK), tl.float32)
    if tl.min(total, 0) >= -SPAN * LOG2E:
        apart = after - total[None, :] * 0.5
        one, two = rounded(query * tl.exp2(apart), HALF), rounded(key * tl.exp2(-apart), HALF)
        scores = tl.where(row > column, product(one, tl.trans(two), PRECISION), 0.0)
    else:
        apart = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        for number in range(1, BLOCK):
            j = BLOCK - 1 - number
            one, gate = key_of(k, gates, j, b, h, start, n, frames, heads, FLIP, DEPTH, BLOCK_D)
            apart = tl.where(row > j, apart + gate, 0.0)
            found = tl.sum(tl.where(row > j, query * one * tl.exp2(apart), 0.0), 1)
            scores = tl.where(column == j, found[:, None], scores)
    if not FLIP:
        scores = tl.where(row == column, tl.sum(query * key, 1)[:, None], scores)
    return scores


@triton.jit
def score_gradients(
    k, gates, query, key, after, total, dscores, b, h, start, n, frames, heads, FLIP: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the gradients of queries and keys, (c, Dk) each, from those of scores above 0."""
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    dscores = tl.where(row > column, dscores, 0.0)
    by_query = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    by_key = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    if tl.min(total, 0) >= -SPAN * LOG2E:
        apart = after - total[None, :] * 0.5
        up, down = tl.exp2(apart), tl.exp2(-apart)
        slopes = rounded(dscores, HALF)
        by_query = product(slopes, rounded(key * down, HALF), PRECISION) * up
        by_key = product(tl.trans(slopes), rounded(query * up, HALF), PRECISION) * down
    else:
        apart = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        for behind in range(1, BLOCK):
            j = BLOCK - 1 - behind
            one, gate = key_of(k, gates, j, b, h, start, n, frames, heads, FLIP, DEPTH, BLOCK_D)
            apart = tl.where(row > j, apart + gate, 0.0)
            slope = tl.sum(tl.where(column == j, dscores, 0.0), 1)[:, None] * tl.exp2(apart)
            by_query += slope * one
            by_key = tl.where(row == j, tl.sum(slope * query, 0)[None, :], by_key)
    return by_query, by_key
