"""Linear attention with decay for GPUs (Lightning Attention-2, 2401.04658, section 3.2).

    y_i = sum over j <= i of exp(g (i - j)) (q_i . k_j) v_j,    g <= 0 a number per head

A program goes along the blocks of a head: exactly within a block, and through a running state, the
(Dk, Dv) sum of k_j v_j with decay, from all blocks before. The paper is causal; to both sides, a
second pass from the end adds the frames after i. The three gradients are the same sum with other
operands (see `speechattn.kernels.attention.linear`), so one kernel is enough. Exponents are
differences of places within a block: none is above zero, whatever the length.
"""

from functools import partial
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechattn.kernels.attention.triton.common import (
    LOG2E,
    load,
    padded,
    places,
    precision,
    product,
    refuse_double,
    sized,
    tiles,
    tuned,
)

Direction = Literal["past", "future", "both"]


def linear_attention(
    *tensors: Tensor, lengths: Tensor, decay: Tensor | None = None, causal: bool = True
) -> Tensor:
    """Compute `speechattn.kernels.attention.linear.linear_attention`, without `normalise`."""
    q = tensors[0]
    refuse_double("linear attention", q)
    if decay is None:
        decay = torch.zeros(q.shape[2], device=q.device)
    return _LinearAttention.apply(*tensors, lengths, decay, causal)


class _LinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, lengths, decay, causal):
        q, k, v, decay = q.contiguous(), k.contiguous(), v.contiguous(), decay.float().contiguous()
        ctx.save_for_backward(q, k, v, lengths, decay)
        ctx.causal = causal
        return _sum(q, k, v, lengths, decay, "past" if causal else "both")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, k, v, lengths, decay = ctx.saved_tensors
        grad = grad.contiguous()
        past, future = ("past", "future") if ctx.causal else ("both", "both")
        dq = _sum(grad, v, k, lengths, decay, past)
        dk = _sum(v, grad, q, lengths, decay, future)
        dv = _sum(k, q, grad, lengths, decay, future)
        return dq, dk, dv, None, None, None


def _sum(
    a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, decay: Tensor, direction: Direction
) -> Tensor:
    """Sum exp(g |i - j|) (a_i . b_j) c_j over j, up to i, from i on, or all."""
    if direction == "both":
        before = _pass(a, b, c, lengths, decay, dtype=torch.float32)
        after = _pass(a, b, c, lengths, decay, dtype=torch.float32, reverse=True, strict=True)
        return before.add_(after).to(c.dtype)
    return _pass(a, b, c, lengths, decay, dtype=c.dtype, reverse=direction == "future")


def _pass(
    *tensors: Tensor, dtype: torch.dtype, reverse: bool = False, strict: bool = False
) -> Tensor:
    """Sum from one end to the other; `strict` leaves out i itself."""
    a, b, c, lengths, decay = tensors
    batch, frames, heads, depth = a.shape
    width = c.shape[3]
    out = torch.empty_like(c, dtype=dtype)
    if out.numel() > 0:
        grid = partial(tiles, width, "BLOCK_V", heads, batch)
        with torch.cuda.device_of(a):  # Triton launches on the current one
            _kernel[grid](
                a, b, c, decay, lengths, out, heads, frames, REVERSE=reverse, STRICT=strict,
                DEPTH=depth, BLOCK_D=padded(depth), WIDTH=width, PRECISION=precision(),
            )  # fmt: skip
    return out


# Frames of a block, columns of the state, warps, stages. Few columns make more programs, for small
# batches.
_CONFIGURATIONS = sized(
    ["BLOCK", "BLOCK_V"], (128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 2),
    (64, 32, 4, 3), (64, 16, 4, 3), (32, 64, 4, 2), (32, 32, 4, 2),
)  # fmt: skip


@tuned(_CONFIGURATIONS, ["DEPTH", "WIDTH", "REVERSE", "STRICT"])
@triton.jit
def _kernel(
    a, b, c, decay, lengths, out, heads, frames, REVERSE: tl.constexpr, STRICT: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_V columns of the output of a head, from one end to the other."""
    part, h, item = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n = tl.load(lengths + item).to(tl.int32)
    g = tl.load(decay + h) * LOG2E
    state = tl.zeros((BLOCK_D, BLOCK_V), tl.float32)
    row = tl.arange(0, BLOCK)
    column = part * BLOCK_V + tl.arange(0, BLOCK_V)
    ahead = row[:, None] - row[None, :]  # i - j
    if REVERSE:
        ahead = -ahead
    within = tl.where(ahead >= (1 if STRICT else 0), tl.exp2(g * tl.maximum(ahead, 0)), 0.0)
    # A block's frames count from the end that the state comes in at.
    passed = row
    if REVERSE:
        passed = BLOCK - 1 - row
    arriving = tl.exp2(g * (passed + 1))[:, None]
    leaving = tl.exp2(g * (BLOCK - 1 - passed))[:, None]
    across = tl.exp2(g * BLOCK)
    blocks = tl.cdiv(frames, BLOCK)
    for number in range(0, blocks):
        start = number * BLOCK
        if REVERSE:
            start = (blocks - 1 - number) * BLOCK
        t = start + row
        inside = (t < n)[:, None] & (column < WIDTH)[None, :]
        # Frames beyond the length are zeros and leave no trace in the state.
        one = load(a, item, h, t, n, frames, heads, DEPTH, BLOCK_D)
        two = load(b, item, h, t, n, frames, heads, DEPTH, BLOCK_D)
        places_c = places(c, item, h, t, frames, heads, WIDTH, BLOCK_V) + part * BLOCK_V
        three = tl.load(places_c, mask=inside, other=0.0)
        scores = product(one, tl.trans(two), PRECISION) * within
        y = product(scores.to(three.dtype), three, PRECISION)
        y += product(one, state.to(one.dtype), PRECISION) * arriving
        places_y = places(out, item, h, t, frames, heads, WIDTH, BLOCK_V) + part * BLOCK_V
        tl.store(places_y, y.to(out.dtype.element_ty),
                 mask=(t < frames)[:, None] & (column < WIDTH)[None, :])  # fmt: skip
        faded = (two.to(tl.float32) * leaving).to(two.dtype)
        state = state * across + product(tl.trans(faded), three, PRECISION)
