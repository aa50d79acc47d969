"""Linear attention with gates for GPUs, chunkwise (Gated Linear Attention, 2312.06635, section 4).

    S_i = diag(exp(g_i)) S_(i-1) + k_i v_i^T,    y_i = q_i S_i

One kernel goes along the blocks of a head and stores the state S before each, (Dk, Dv) in float32;
the others take all blocks at once: the output of a block from its state and its own frames, and
backwards, with the gradient of the state after it from the same kernel run from the end, all
gradients of a block. `gated_blocks` computes within a block. To both sides, a second pass over
reversed frames adds the frames after i; see the portable kernel.

Legend: see `speechattn.kernels.attention.triton`; c = BLOCK frames of a block, n frames of an item.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechattn.kernels.attention.triton.common import (
    INTERPRETED,
    load,
    padded,
    precision,
    product,
    refuse_double,
    sized,
    store_until,
    tuned,
)
from speechattn.kernels.attention.triton.gated_blocks import (
    CLOSED,
    block_index,
    block_scores,
    columns_of,
    frames_of,
    gates_after,
    log_gates,
    rounded,
    score_gradients,
    state_of,
)


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, lengths: Tensor, causal: bool = True
) -> Tensor:
    """Compute `speechattn.kernels.attention.gated_linear.gated_linear_attention`.

    Keeps the state before each block for the backward pass: (B, H, T / c, Dk, Dv) float32.
    """
    refuse_double("gated linear attention", q)
    gates = gates.float()
    if causal:
        return _Scan.apply(q, k, v, gates, lengths, False, v.dtype)
    # Neither direction is rounded before they are added.
    before, after = (
        _Scan.apply(q, k, v, gates, lengths, flip, torch.float32) for flip in (False, True)
    )
    return (before + after).to(v.dtype)


def frames_of_a_block(q: Tensor) -> int:
    """Return c: fewer for wider frames, to save registers."""
    if INTERPRETED:
        return 16
    frames = 64 if q.dtype == torch.bfloat16 else 32  # others are multiplied as float32
    return frames if padded(q.shape[3]) <= 64 else frames // 2


class _Scan(torch.autograd.Function):
    """One direction. Flipped, it runs from the end of an item and leaves out a frame's own key."""

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
    """Return the numbers of blocks, heads and items."""
    batch, frames, heads, _ = q.shape
    return triton.cdiv(frames, frames_of_a_block(q)), heads, batch


def _grid(q: Tensor, v: Tensor):
    """Return the grid: blocks times parts of the columns, heads, items."""
    blocks, heads, batch = _blocks(q)
    return lambda sizes: (triton.cdiv(v.shape[3], sizes["BLOCK_V"]) * blocks, heads, batch)


def _shared(q: Tensor, v: Tensor, flip: bool) -> dict:
    """Return the arguments of all kernels."""
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
    """Return states before blocks, or gradients after them, (B, H, blocks, Dk, Dv) float32."""
    blocks, heads, batch = _blocks(a)
    depth, width = a.shape[3], c.shape[3]
    states = torch.empty(batch, heads, blocks, depth, width, device=a.device)
    if states.numel() > 0:

        def grid(sizes: dict) -> tuple[int, int, int]:
            return triton.cdiv(width, sizes["BLOCK_V"]), heads, batch

        with torch.cuda.device_of(a):
            _scan[grid](a, c, gates, lengths, states, BACK=back, **_shared(a, c, flip))
    return states


# Columns of the state, warps, stages.
_ALONG = sized(["BLOCK_V"], (64, 4, 2), (32, 4, 3), (32, 4, 2), (16, 4, 3), (32, 2, 2), (16, 2, 2))
_WITHIN = sized(
    ["BLOCK_V"], (128, 8, 1), (64, 4, 1), (32, 4, 1), (16, 4, 1), (64, 8, 1), (32, 8, 1)
)
_KEY = ["DEPTH", "WIDTH", "HALF"]


@tuned(_ALONG, [*_KEY, "BACK"])
@triton.jit
def _scan(
    a, c, gates, lengths, states, heads, frames, BACK: tl.constexpr, FLIP: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Compute columns of the states before the blocks of a head, of a = k and c = v.

    With BACK, a = q and c = dy, those of the gradients of the states after them.
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
        block = block_index(b, h, number, frames, heads, BLOCK)
        at, there = state_of(states, block, first, DEPTH, BLOCK_D, WIDTH, BLOCK_V)
        tl.store(at, state, mask=there)
        t = frames_of(number * BLOCK, n, FLIP, BLOCK)
        g = log_gates(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D)
        one = load(a, b, h, t, n, frames, heads, DEPTH, BLOCK_D).to(tl.float32)
        at, there = columns_of(c, b, h, t, first, n, frames, heads, WIDTH, BLOCK_V)
        two = tl.load(at, mask=there, other=0.0).to(tl.float32)
        # Gates up to and with a frame from the end, else those after it.
        if BACK:
            fade = tl.cumsum(g, 0)
        else:
            fade = gates_after(gates, b, h, number * BLOCK, n, frames, heads, FLIP, DEPTH, BLOCK_D,
                          BLOCK)  # fmt: skip
        one = rounded(one * tl.exp2(fade), HALF)
        state = state * tl.exp2(tl.sum(g, 0))[:, None]
        state += product(tl.trans(one), rounded(two, HALF), PRECISION)


@tuned(_WITHIN, _KEY)
@triton.jit
def _outputs(
    q, k, v, gates, lengths, states, out, heads, frames, FLIP: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Compute columns of the output of a block, if it has a frame."""
    parts = tl.cdiv(WIDTH, BLOCK_V)
    number, h, b = tl.program_id(0) // parts, tl.program_id(1), tl.program_id(2)
    n = tl.load(lengths + b).to(tl.int32)
    if number * BLOCK < n:
        first = tl.program_id(0) % parts * BLOCK_V
        t = frames_of(number * BLOCK, n, FLIP, BLOCK)
        block = block_index(b, h, number, frames, heads, BLOCK)
        query = load(q, b, h, t, n, frames, heads, DEPTH, BLOCK_D).to(tl.float32)
        key = load(k, b, h, t, n, frames, heads, DEPTH, BLOCK_D).to(tl.float32)
        g = log_gates(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D)
        after = tl.cumsum(g, 0)
        scores = block_scores(k, gates, query, key, after, tl.sum(g, 0), b, h, number * BLOCK, n,
                              frames, heads, FLIP, DEPTH, BLOCK_D, BLOCK, HALF,
                              PRECISION)  # fmt: skip
        at, there = columns_of(v, b, h, t, first, n, frames, heads, WIDTH, BLOCK_V)
        value = tl.load(at, mask=there, other=0.0).to(tl.float32)
        y = product(rounded(scores, HALF), rounded(value, HALF), PRECISION)
        at, real = state_of(states, block, first, DEPTH, BLOCK_D, WIDTH, BLOCK_V)
        state = rounded(tl.load(at, mask=real, other=0.0), HALF)
        y += product(rounded(query * tl.exp2(after), HALF), state, PRECISION)
        at, there = columns_of(out, b, h, t, first, n, frames, heads, WIDTH, BLOCK_V)
        tl.store(at, y.to(out.dtype.element_ty), mask=there)


@tuned(_WITHIN, _KEY)
@triton.jit
def _gradients(
    q, k, v, gates, lengths, states, dstates, grad, dq, dk, dv, dgates, heads, frames,
    FLIP: tl.constexpr, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Compute all gradients of a block, if it has a frame."""
    number, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n = tl.load(lengths + b).to(tl.int32)
    if number * BLOCK < n:
        t = frames_of(number * BLOCK, n, FLIP, BLOCK)
        block = block_index(b, h, number, frames, heads, BLOCK)
        query = load(q, b, h, t, n, frames, heads, DEPTH, BLOCK_D).to(tl.float32)
        key = load(k, b, h, t, n, frames, heads, DEPTH, BLOCK_D).to(tl.float32)
        g = log_gates(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D)
        after, total = tl.cumsum(g, 0), tl.sum(g, 0)
        leaving = gates_after(gates, b, h, number * BLOCK, n, frames, heads, FLIP, DEPTH, BLOCK_D,
                         BLOCK)  # fmt: skip
        leaving = tl.exp2(leaving)
        scores = block_scores(k, gates, query, key, after, total, b, h, number * BLOCK, n, frames,
                              heads, FLIP, DEPTH, BLOCK_D, BLOCK, HALF, PRECISION)  # fmt: skip
        scores, left = rounded(scores, HALF), rounded(key * leaving, HALF)
        dscores = tl.zeros((BLOCK, BLOCK), tl.float32)
        dquery = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        dkey = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        own = tl.zeros((BLOCK,), tl.float32)
        kept = tl.zeros((BLOCK_D,), tl.float32)
        for first in range(0, WIDTH, BLOCK_V):
            at, there = columns_of(v, b, h, t, first, n, frames, heads, WIDTH, BLOCK_V)
            value = tl.load(at, mask=there, other=0.0).to(tl.float32)
            at, there = columns_of(grad, b, h, t, first, n, frames, heads, WIDTH, BLOCK_V)
            slope = tl.load(at, mask=there, other=0.0).to(tl.float32)
            own += tl.sum(value * slope, 1)
            value, slope = rounded(value, HALF), rounded(slope, HALF)
            at, real = state_of(states, block, first, DEPTH, BLOCK_D, WIDTH, BLOCK_V)
            state = tl.load(at, mask=real, other=0.0)
            at, real = state_of(dstates, block, first, DEPTH, BLOCK_D, WIDTH, BLOCK_V)
            dstate = tl.load(at, mask=real, other=0.0)
            kept += tl.sum(state * dstate, 1)
            state, dstate = rounded(state, HALF), rounded(dstate, HALF)
            dscores += product(slope, tl.trans(value), PRECISION)
            dquery += product(slope, tl.trans(state), PRECISION)
            dkey += product(value, tl.trans(dstate), PRECISION)
            dvalue = product(tl.trans(scores), slope, PRECISION)
            dvalue += product(left, dstate, PRECISION)
            at, there = columns_of(dv, b, h, t, first, n, frames, heads, WIDTH, BLOCK_V)
            tl.store(at, dvalue.to(dv.dtype.element_ty), mask=there)
        # A gate acts on queries from its frame on, on keys before it, and on the passing state.
        dquery, dkey = dquery * tl.exp2(after), dkey * leaving
        away = key * dkey
        dg = tl.cumsum(away, 0) - away + (tl.exp2(total) * kept)[None, :]
        towards = query * dquery
        by_query, by_key = score_gradients(k, gates, query, key, after, total, dscores, b, h,
                                           number * BLOCK, n, frames, heads, FLIP, DEPTH, BLOCK_D,
                                           BLOCK, HALF, PRECISION)  # fmt: skip
        # Within the block a gate acts on queries from its frame on, less keys likewise.
        dg += tl.cumsum(towards + query * by_query - key * by_key, 0, reverse=True)
        dquery += by_query
        dkey += by_key
        if not FLIP:
            dquery += own[:, None] * key
            dkey += own[:, None] * query
        store_until(dq, dquery, b, h, t, n, frames, heads, DEPTH, BLOCK_D)
        store_until(dk, dkey, b, h, t, n, frames, heads, DEPTH, BLOCK_D)
        # Zero for closed gates, which have only rounding errors.
        dg = tl.where(load(gates, b, h, t, n, frames, heads, DEPTH, BLOCK_D) < CLOSED, 0.0, dg)
        store_until(dgates, dg, b, h, t, n, frames, heads, DEPTH, BLOCK_D)
