"""Linear attention with gates for GPUs, chunkwise (Gated Linear Attention, 2312.06635, section 4).

    S_i = diag(exp(g_i)) S_(i-1) + k_i v_i^T,    y_i = q_i S_i

One kernel goes along the blocks of a head and keeps the state S before each, (Dk, Dv) in float32;
the others take all blocks at once: the output of a block from its state and its own frames, and on
the way back, with the gradient of the state after it from the same kernel run from the end, all
gradients of a block.

Within a block frame j counts for frame i > j with exp(g_(j+1) + ... + g_i) in each channel, which a
product of a part of i and a part of j makes a matrix product, as long as no channel's gates sum up
below -SPAN: the parts are measured from the middle of that sum. Blocks of stronger gates are
computed key by key instead, with the sums of gates added up from each key on, so that no exponent
is above zero and a closed gate does not wash out what open ones say. Each block chooses for itself,
on the device. (The paper computes the smallest blocks element by element always, section 4.3.)

To both sides, a second pass over reversed frames adds what comes after i; see the portable kernel.

Legend: see `speechattn.kernels.attention.triton`; Dk width of q and k, Dv width of v, c = BLOCK frames of a
block, n frames of an item.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechattn.kernels.attention.triton.common import (
    INTERPRETED,
    LOG2E,
    load,
    padded,
    places,
    precision,
    product,
    tuned,
)

# As in the portable kernel: float32 goes to exp(88), and two parts meet.
_SPAN = tl.constexpr(40.0)
# Gates below this are this: exp(-100) is nothing in float32.
_CLOSED = tl.constexpr(-100.0)


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, lengths: Tensor, causal: bool = True
) -> Tensor:
    """See `speechattn.kernels.attention.gated_linear.gated_linear_attention`.

    Keeps the state before each block for the way back: (B, H, T / c, Dk, Dv) float32.

    Args:
        q: (B, T, H, Dk).
        k: (B, T, H, Dk).
        v: (B, T, H, Dv).
        gates: (B, T, H, Dk), at most 0, minus infinity included.
        lengths: (B,) int64.
        causal: a frame sees itself and those before it, else its whole item.

    Returns:
        (B, T, H, Dv), zero beyond an item's length.

    Raises:
        ValueError: float64.
    """
    if q.dtype == torch.float64:
        raise ValueError("the Triton kernel of gated linear attention takes float32 and halves, "
                         "not float64")  # fmt: skip
    gates = gates.float()
    if causal:
        return _Scan.apply(q, k, v, gates, lengths, False, v.dtype)
    # What comes before and what comes after are not rounded before they are added.
    before, after = (
        _Scan.apply(q, k, v, gates, lengths, flip, torch.float32) for flip in (False, True)
    )
    return (before + after).to(v.dtype)


def frames_of_a_block(q: Tensor) -> int:
    """c: fewer where a frame takes more room, for the registers' sake."""
    if INTERPRETED:
        return 16
    frames = 64 if q.dtype == torch.bfloat16 else 32  # others are multiplied as float32
    return frames if padded(q.shape[3]) <= 64 else frames // 2


class _Scan(torch.autograd.Function):
    """One direction. Flipped, it runs from the end of an item and leaves a frame's own key out."""

    @staticmethod
    def forward(ctx, q, k, v, gates, lengths, flip, dtype):
        q, k, v, gates = (x.contiguous() for x in (q, k, v, gates))
        before = _states(k, v, gates, lengths, flip)
        y = torch.zeros_like(v, dtype=dtype)
        if y.numel() > 0 and q.shape[3] > 0:
            with torch.cuda.device_of(q):  # Triton launches on the current one
                _outputs[_grid(q, v)](q, k, v, gates, lengths, before, y, **_shared(q, v, flip))
        ctx.save_for_backward(q, k, v, gates, lengths, before)
        ctx.flip = flip
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, k, v, gates, lengths, before = ctx.saved_tensors
        grad = grad.contiguous()
        after = _states(q, grad, gates, lengths, ctx.flip, back=True)
        dq, dk, dv, dgates = (torch.zeros_like(x) for x in (q, k, v, gates))
        if q.numel() > 0 and v.numel() > 0:
            with torch.cuda.device_of(q):
                _gradients[_blocks(q)](
                    q, k, v, gates, lengths, before, after, grad, dq, dk, dv, dgates,
                    **_shared(q, v, ctx.flip),
                )  # fmt: skip
        return dq, dk, dv, dgates, None, None, None


def _blocks(q: Tensor) -> tuple[int, int, int]:
    """Blocks, heads, items."""
    batch, frames, heads, _ = q.shape
    return triton.cdiv(frames, frames_of_a_block(q)), heads, batch


def _grid(q: Tensor, v: Tensor):
    """Blocks and parts of the columns, heads, items."""
    blocks, heads, batch = _blocks(q)
    return lambda sizes: (triton.cdiv(v.shape[3], sizes["BLOCK_V"]) * blocks, heads, batch)


def _shared(q: Tensor, v: Tensor, flip: bool) -> dict:
    """Arguments of all kernels."""
    block = frames_of_a_block(q)
    return {
        "heads": q.shape[2],
        "frames": q.shape[1],
        "FLIP": flip,
        "DEPTH": q.shape[3],
        "BLOCK_D": padded(q.shape[3]),
        "WIDTH": v.shape[3],
        "BLOCK": block,
        "HALF": q.dtype == torch.bfloat16,
        "PRECISION": precision(),
    }


def _states(
    a: Tensor, c: Tensor, gates: Tensor, lengths: Tensor, flip: bool, back: bool = False
) -> Tensor:
    """(B, H, blocks, Dk, Dv) float32, before each block; from the end, the gradient after each."""
    blocks, heads, batch = _blocks(a)
    depth, width = a.shape[3], c.shape[3]
    states = torch.empty(batch, heads, blocks, depth, width, device=a.device)
    if states.numel() > 0:

        def grid(sizes: dict) -> tuple[int, int, int]:
            return triton.cdiv(width, sizes["BLOCK_V"]), heads, batch

        with torch.cuda.device_of(a):
            _scan[grid](a, c, gates, lengths, states, BACK=back, **_shared(a, c, flip))
    return states


def _sizes(*configurations: tuple[int, int, int]) -> list[tuple[dict, int, int]]:
    return [({"BLOCK_V": v}, w, s) for v, w, s in configurations]


# Columns of the state, warps, stages.
_ALONG = _sizes((64, 4, 2), (32, 4, 3), (32, 4, 2), (16, 4, 3), (32, 2, 2), (16, 2, 2))
_WITHIN = _sizes((128, 8, 1), (64, 4, 1), (32, 4, 1), (16, 4, 1), (64, 8, 1), (32, 8, 1))
_KEY = ["DEPTH", "WIDTH", "HALF"]


@triton.jit
def _rounded(x, HALF: tl.constexpr):
    """As products take it: float16 stays float32, where no part overflows."""
    return x.to(tl.bfloat16) if HALF else x


@triton.jit
def _moments(start, n, FLIP: tl.constexpr, BLOCK: tl.constexpr):
    """Frames (c,) of the block that begins at place `start`; below 0 or from n on where none is."""
    place = start + tl.arange(0, BLOCK)
    if FLIP:
        place = n - 1 - place
    return place


@triton.jit
def _gates(gates, b, h, t, n, frames, heads, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """(c, Dk), to the base of 2; 0 where there is no frame."""
    g = load(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D)
    return tl.maximum(g, _CLOSED) * LOG2E


@triton.jit
def _later(
    gates, b, h, start, n, frames, heads, FLIP: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(c, Dk), the sum of the gates after each frame of a block."""
    t = _moments(start + 1, n, FLIP, BLOCK)
    g = _gates(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D)
    last = tl.arange(0, BLOCK)[:, None] == BLOCK - 1
    return tl.cumsum(tl.where(last, 0.0, g), 0, reverse=True)


@triton.jit
def _key(
    k, gates, j, b, h, start, n, frames, heads, FLIP: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(1, Dk), the j-th key of a block, and the gates of the frame after it."""
    t = _moments(start + j, n, FLIP, 1)
    key = load(k, b, h, t, n, frames, heads, DEPTH, BLOCK_D).to(tl.float32)
    t = _moments(start + j + 1, n, FLIP, 1)
    return key, _gates(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D)


@triton.jit
def _columns(
    x, b, h, t, first, n, frames, heads, WIDTH: tl.constexpr, BLOCK_V: tl.constexpr
):  # fmt: skip
    """Addresses of columns from `first` on of frames t of x (B, T, H, Dv), and which are real."""
    column = first + tl.arange(0, BLOCK_V)
    at = places(x, b, h, t, frames, heads, WIDTH, BLOCK_V) + first
    return at, ((t >= 0) & (t < n))[:, None] & (column < WIDTH)[None, :]


@triton.jit
def _block(b, h, number, frames, heads, BLOCK: tl.constexpr):
    """The place of a block among all of (B, H, blocks)."""
    return (tl.cast(b, tl.int64) * heads + h) * tl.cdiv(frames, BLOCK) + number


@triton.jit
def _state(
    states, block, first, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Addresses (Dk, columns) of the state of a block, and which are real."""
    d, column = tl.arange(0, BLOCK_D), first + tl.arange(0, BLOCK_V)
    at = states + block * DEPTH * WIDTH + d[:, None] * WIDTH + column[None, :]
    return at, (d < DEPTH)[:, None] & (column < WIDTH)[None, :]


@triton.jit
def _scores(
    k, gates, query, key, after, total, b, h, start, n, frames, heads, FLIP: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """(c, c), of the frames of a block with those before them, and themselves unless flipped."""
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    scores = tl.zeros((BLOCK, BLOCK), tl.float32)
    if tl.min(total, 0) >= -_SPAN * LOG2E:
        apart = after - total[None, :] * 0.5
        one, two = _rounded(query * tl.exp2(apart), HALF), _rounded(key * tl.exp2(-apart), HALF)
        scores = tl.where(row > column, product(one, tl.trans(two), PRECISION), 0.0)
    else:
        apart = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        for number in range(1, BLOCK):
            j = BLOCK - 1 - number
            one, gate = _key(k, gates, j, b, h, start, n, frames, heads, FLIP, DEPTH, BLOCK_D)
            apart = tl.where(row > j, apart + gate, 0.0)
            found = tl.sum(tl.where(row > j, query * one * tl.exp2(apart), 0.0), 1)
            scores = tl.where(column == j, found[:, None], scores)
    if not FLIP:
        scores = tl.where(row == column, tl.sum(query * key, 1)[:, None], scores)
    return scores


@tuned(_ALONG, [*_KEY, "BACK"])
@triton.jit
def _scan(
    a, c, gates, lengths, states, heads, frames, BACK: tl.constexpr, FLIP: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Columns of the states before the blocks of a head, of a = k and c = v.

    From the end, with a = q and c = dy, of the gradients of the states after them.
    """
    part, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n = tl.load(lengths + b).to(tl.int32)
    first = part * BLOCK_V
    state = tl.zeros((BLOCK_D, BLOCK_V), tl.float32)
    filled = tl.cdiv(n, BLOCK)
    for count in range(0, filled):
        number = count
        if BACK:
            number = filled - 1 - count
        block = _block(b, h, number, frames, heads, BLOCK)
        at, there = _state(states, block, first, DEPTH, BLOCK_D, WIDTH, BLOCK_V)
        tl.store(at, state, mask=there)
        t = _moments(number * BLOCK, n, FLIP, BLOCK)
        g = _gates(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D)
        one = load(a, b, h, t, n, frames, heads, DEPTH, BLOCK_D).to(tl.float32)
        at, there = _columns(c, b, h, t, first, n, frames, heads, WIDTH, BLOCK_V)
        two = tl.load(at, mask=there, other=0.0).to(tl.float32)
        # Up to and with a frame on the way from the end, else after it.
        if BACK:
            fade = tl.cumsum(g, 0)
        else:
            fade = _later(gates, b, h, number * BLOCK, n, frames, heads, FLIP, DEPTH, BLOCK_D,
                          BLOCK)  # fmt: skip
        one = _rounded(one * tl.exp2(fade), HALF)
        state = state * tl.exp2(tl.sum(g, 0))[:, None]
        state += product(tl.trans(one), _rounded(two, HALF), PRECISION)


@tuned(_WITHIN, _KEY)
@triton.jit
def _outputs(
    q, k, v, gates, lengths, states, out, heads, frames, FLIP: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Columns of the output of a block; nothing where there is no frame."""
    parts = tl.cdiv(WIDTH, BLOCK_V)
    number, h, b = tl.program_id(0) // parts, tl.program_id(1), tl.program_id(2)
    n = tl.load(lengths + b).to(tl.int32)
    if number * BLOCK < n:
        first = tl.program_id(0) % parts * BLOCK_V
        t = _moments(number * BLOCK, n, FLIP, BLOCK)
        block = _block(b, h, number, frames, heads, BLOCK)
        query = load(q, b, h, t, n, frames, heads, DEPTH, BLOCK_D).to(tl.float32)
        key = load(k, b, h, t, n, frames, heads, DEPTH, BLOCK_D).to(tl.float32)
        g = _gates(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D)
        after = tl.cumsum(g, 0)
        scores = _scores(k, gates, query, key, after, tl.sum(g, 0), b, h, number * BLOCK, n, frames,
                         heads, FLIP, DEPTH, BLOCK_D, BLOCK, HALF, PRECISION)  # fmt: skip
        at, there = _columns(v, b, h, t, first, n, frames, heads, WIDTH, BLOCK_V)
        value = tl.load(at, mask=there, other=0.0).to(tl.float32)
        y = product(_rounded(scores, HALF), _rounded(value, HALF), PRECISION)
        at, real = _state(states, block, first, DEPTH, BLOCK_D, WIDTH, BLOCK_V)
        state = _rounded(tl.load(at, mask=real, other=0.0), HALF)
        y += product(_rounded(query * tl.exp2(after), HALF), state, PRECISION)
        at, there = _columns(out, b, h, t, first, n, frames, heads, WIDTH, BLOCK_V)
        tl.store(at, y.to(out.dtype.element_ty), mask=there)


@tuned(_WITHIN, _KEY)
@triton.jit
def _gradients(
    q, k, v, gates, lengths, states, dstates, grad, dq, dk, dv, dgates, heads, frames,
    FLIP: tl.constexpr, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """All gradients of a block; nothing where there is no frame."""
    number, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n = tl.load(lengths + b).to(tl.int32)
    if number * BLOCK < n:
        row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
        t = _moments(number * BLOCK, n, FLIP, BLOCK)
        block = _block(b, h, number, frames, heads, BLOCK)
        query = load(q, b, h, t, n, frames, heads, DEPTH, BLOCK_D).to(tl.float32)
        key = load(k, b, h, t, n, frames, heads, DEPTH, BLOCK_D).to(tl.float32)
        g = _gates(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D)
        after, total = tl.cumsum(g, 0), tl.sum(g, 0)
        leaving = _later(gates, b, h, number * BLOCK, n, frames, heads, FLIP, DEPTH, BLOCK_D,
                         BLOCK)  # fmt: skip
        leaving = tl.exp2(leaving)
        scores = _scores(k, gates, query, key, after, total, b, h, number * BLOCK, n, frames,
                         heads, FLIP, DEPTH, BLOCK_D, BLOCK, HALF, PRECISION)  # fmt: skip
        scores, left = _rounded(scores, HALF), _rounded(key * leaving, HALF)
        dscores = tl.zeros((BLOCK, BLOCK), tl.float32)
        dquery = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        dkey = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        own = tl.zeros((BLOCK,), tl.float32)
        kept = tl.zeros((BLOCK_D,), tl.float32)
        for first in range(0, WIDTH, BLOCK_V):
            at, there = _columns(v, b, h, t, first, n, frames, heads, WIDTH, BLOCK_V)
            value = tl.load(at, mask=there, other=0.0).to(tl.float32)
            at, there = _columns(grad, b, h, t, first, n, frames, heads, WIDTH, BLOCK_V)
            slope = tl.load(at, mask=there, other=0.0).to(tl.float32)
            own += tl.sum(value * slope, 1)
            value, slope = _rounded(value, HALF), _rounded(slope, HALF)
            at, real = _state(states, block, first, DEPTH, BLOCK_D, WIDTH, BLOCK_V)
            state = tl.load(at, mask=real, other=0.0)
            at, real = _state(dstates, block, first, DEPTH, BLOCK_D, WIDTH, BLOCK_V)
            dstate = tl.load(at, mask=real, other=0.0)
            kept += tl.sum(state * dstate, 1)
            state, dstate = _rounded(state, HALF), _rounded(dstate, HALF)
            dscores += product(slope, tl.trans(value), PRECISION)
            dquery += product(slope, tl.trans(state), PRECISION)
            dkey += product(value, tl.trans(dstate), PRECISION)
            dvalue = product(tl.trans(scores), slope, PRECISION)
            dvalue += product(left, dstate, PRECISION)
            at, there = _columns(dv, b, h, t, first, n, frames, heads, WIDTH, BLOCK_V)
            tl.store(at, dvalue.to(dv.dtype.element_ty), mask=there)
        # A gate counts for queries from its frame on, for keys before it, and for what passes.
        dquery, dkey = dquery * tl.exp2(after), dkey * leaving
        away = key * dkey
        dg = tl.cumsum(away, 0) - away + (tl.exp2(total) * kept)[None, :]
        towards = query * dquery
        dscores = tl.where(row > column, dscores, 0.0)
        by_query = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        by_key = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        if tl.min(total, 0) >= -_SPAN * LOG2E:
            apart = after - total[None, :] * 0.5
            up, down = tl.exp2(apart), tl.exp2(-apart)
            slopes = _rounded(dscores, HALF)
            by_query = product(slopes, _rounded(key * down, HALF), PRECISION) * up
            by_key = product(tl.trans(slopes), _rounded(query * up, HALF), PRECISION) * down
        else:
            apart = tl.zeros((BLOCK, BLOCK_D), tl.float32)
            for behind in range(1, BLOCK):
                j = BLOCK - 1 - behind
                one, gate = _key(k, gates, j, b, h, number * BLOCK, n, frames, heads, FLIP, DEPTH,
                                 BLOCK_D)  # fmt: skip
                apart = tl.where(row > j, apart + gate, 0.0)
                slope = tl.sum(tl.where(column == j, dscores, 0.0), 1)[:, None] * tl.exp2(apart)
                by_query += slope * one
                by_key = tl.where(row == j, tl.sum(slope * query, 0)[None, :], by_key)
        # Both within the block: a gate counts for queries from its frame on less keys likewise.
        dg += tl.cumsum(towards + query * by_query - key * by_key, 0, reverse=True)
        dquery += by_query
        dkey += by_key
        if not FLIP:
            dquery += own[:, None] * key
            dkey += own[:, None] * query
        real = ((t >= 0) & (t < n))[:, None] & (tl.arange(0, BLOCK_D) < DEPTH)[None, :]
        tl.store(places(dq, b, h, t, frames, heads, DEPTH, BLOCK_D),
                 dquery.to(dq.dtype.element_ty), mask=real)  # fmt: skip
        tl.store(places(dk, b, h, t, frames, heads, DEPTH, BLOCK_D),
                 dkey.to(dk.dtype.element_ty), mask=real)  # fmt: skip
        # Nothing of a closed gate, but for what rounding leaves.
        dg = tl.where(load(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D) < _CLOSED, 0.0, dg)
        tl.store(places(dgates, b, h, t, frames, heads, DEPTH, BLOCK_D), dg, mask=real)
