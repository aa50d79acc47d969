"""Linear attention with a decay per head: sums over all frames, in time and memory linear in T.

    y_i = sum over j of exp(g |i - j|) (q_i . k_j) v_j,    g <= 0 a number per head

over j <= i where causal, else over all frames of the item. There is no softmax and no scale, and
feature maps of q and k are the caller's. Block by block as in Lightning Attention-2 (2401.04658,
section 3.2): exact within a block, and all earlier blocks through a running state, the (Dk, Dv) sum
of k_j v_j with decay. That paper is causal; to both sides a second state runs from the end, and
without decay one sum over the item serves all its frames.

The gradients are the same sum with other operands, from the other end where causal:

    dq_i = sum over j of exp(g |i - j|) (dy_i . v_j) k_j
    dk_j = sum over i of exp(g |i - j|) (v_j . dy_i) q_i
    dv_j = sum over i of exp(g |i - j|) (k_j . q_i) dy_i

so only the operands are kept for the backward pass. Exponents are differences of places within a
block, and never above zero.

Legend: see `speechattn.kernels`; c frames of a block, n items of it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from speechattn.kernels.attention.time_blocks import Block, blocks, put, take, wide
from speechattn.kernels.backend import choose
from speechattn.kernels.precision import operands
from speechattn.masks import padding_mask

# Frames of a block.
BLOCK = 128

Direction = Literal["past", "future", "both"]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    *,
    decay: Tensor | None = None,
    causal: bool = True,
    normalise: bool = False,
) -> Tensor:
    """Attend without softmax in a ragged batch.

    Args:
        q, k: (B, T, H, Dk).
        v: (B, T, H, Dv).
        lengths: (B,) int64.
        decay: (H,) g, the logarithm of the decay per frame; at most 0, without a gradient. None for
            no decay.
        causal: a frame sees itself and those before it, else its whole item.
        normalise: divide by the sum of a frame's weights exp(g |i - j|) (q_i . k_j), for positive
            features. A sum of exactly zero counts as one.

    Returns:
        (B, T, H, Dv), zero beyond an item's length; in autocast's dtype where it is on. Halves are
        computed in float32.

    Raises:
        ValueError: decay is not (H,), or above 0.
    """
    decay = _checked(decay, q.shape[2])
    q, k, v = operands(q, k, v)
    dtype = v.dtype
    with torch.autocast(q.device.type, enabled=False):
        if normalise:
            # The divisor must not be rounded to half precision.
            q, k, v = (x.to(wide(dtype)) for x in (q, k, v))
            v = _with_ones(v)
        backend = choose(q.device, "linear_attention", q)
        if backend == "triton":
            from speechattn.kernels.attention.triton.linear import linear_attention as compute
        else:
            compute = {"reference": reference, "torch": tiled}[backend]
        y = compute(q, k, v, lengths=lengths, decay=decay, causal=causal)
        if normalise:
            y = _divided(y)
    return y.to(dtype)


def linear_attention_state(q: Tensor, v: Tensor, normalise: bool = False) -> Tensor:
    """Return the state of `linear_attention_step` before the first frame.

    Args:
        q: (B, c, H, Dk), for its shape and device.
        v: (B, c, H, Dv).
        normalise: as in the steps.

    Returns:
        (B, H, Dk, Dv), one column more with `normalise`; float32 at least.
    """
    shape = (q.shape[0], q.shape[2], q.shape[3], v.shape[3] + int(normalise))
    return torch.zeros(shape, dtype=wide(v.dtype), device=v.device)


def linear_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    *,
    decay: Tensor | None = None,
    normalise: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute causal `linear_attention` of the next frames.

    Args:
        q, k: (B, c, H, Dk).
        v: (B, c, H, Dv).
        state: from `linear_attention_state` or the step before.
        decay, normalise: as in `linear_attention`.

    Returns:
        (B, c, H, Dv), and the state with these frames.
    """
    batch, frames, heads, _ = q.shape
    decay = _checked(decay, heads)
    q, k, v = operands(q, k, v)
    dtype = v.dtype
    with torch.autocast(q.device.type, enabled=False):
        if normalise:
            v = _with_ones(v)
        table = _Table.make(decay, min(frames, BLOCK), "past", q)
        running, parts = state.flatten(0, 1), []
        for start in range(0, frames, BLOCK):
            block = Block(slice(0, batch), batch, start, min(start + BLOCK, frames), None)
            one, two, three = (take(x, block) for x in (q, k, v))
            y, running = _block(one, two, three, running, table)
            parts.append(y.unflatten(0, (batch, heads)).transpose(1, 2))
        y = torch.cat(parts, 1) if parts else v.to(state.dtype)
        if normalise:
            y = _divided(y)
    return y.to(dtype), running.unflatten(0, (batch, heads))


def reference(
    *tensors: Tensor, lengths: Tensor, decay: Tensor | None = None, causal: bool = True
) -> Tensor:
    """Compute the definition; see `linear_attention`. Makes (B, H, T, T) tensors."""
    q, k, v = (x.to(wide(x.dtype)) for x in tensors)
    place = torch.arange(q.shape[1], device=q.device)
    apart = place[:, None] - place  # (T, T)
    weights = torch.einsum("bihd,bjhd->bhij", q, k)
    if decay is not None:
        weights = weights * (decay.to(q)[:, None, None] * apart.abs()).exp()
    real = padding_mask(lengths, q.shape[1])[:, None]  # (B, 1, T)
    seen = real[..., None, :] & real[..., None]
    if causal:
        seen = seen & (apart >= 0)
    return torch.einsum("bhij,bjhd->bihd", weights.masked_fill(~seen, 0.0), v)


def tiled(
    *tensors: Tensor, lengths: Tensor, decay: Tensor | None = None, causal: bool = True
) -> Tensor:
    """Compute block by block, in float32 at least; see `linear_attention`."""
    return _LinearAttention.apply(*tensors, lengths, decay, causal)


class _LinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, lengths, decay, causal):
        ctx.save_for_backward(q, k, v, lengths, decay)
        ctx.causal = causal
        return _sum(q, k, v, lengths, decay, "past" if causal else "both")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, k, v, lengths, decay = ctx.saved_tensors
        past, future = ("past", "future") if ctx.causal else ("both", "both")
        dq = dk = dv = None
        if ctx.needs_input_grad[0]:
            dq = _sum(grad, v, k, lengths, decay, past).to(q.dtype)
        if ctx.needs_input_grad[1]:
            dk = _sum(v, grad, q, lengths, decay, future).to(k.dtype)
        if ctx.needs_input_grad[2]:
            dv = _sum(k, q, grad, lengths, decay, future).to(v.dtype)
        return dq, dk, dv, None, None, None


@dataclass(frozen=True)
class _Table:
    """The decay after 0, 1, ..., c frames."""

    kept: Tensor | None  # (H, c+1, 1); None without decay
    within: Tensor  # (H or 1, c, c), of frame j for frame i of a block; zero where masked

    @staticmethod
    def make(decay: Tensor | None, size: int, direction: Direction, like: Tensor) -> "_Table":
        """Make the table for blocks of up to `size` frames, on the device of `like`."""
        place = torch.arange(size, device=like.device)
        masked = {"past": torch.tril, "future": torch.triu, "both": torch.clone}[direction]
        if decay is None:
            ones = torch.ones(1, size, size, dtype=wide(like.dtype), device=like.device)
            return _Table(None, masked(ones))
        after = torch.arange(size + 1, dtype=torch.float64, device=like.device)
        # One exponential for each distance, and no difference of large exponents.
        kept = (decay.double()[:, None] * after).exp().to(wide(like.dtype))  # (H, c+1)
        within = kept[:, (place[:, None] - place).abs()]
        return _Table(kept[..., None], masked(within))


def _block(
    a: Tensor, b: Tensor, c: Tensor, state: Tensor, table: _Table, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute a block's part (n H, c, Dv) of `_sum`, and the state (n H, Dk, Dv) after it."""
    size = a.shape[1]
    within = table.within[:, :size, :size]
    scores = torch.bmm(a, b.mT).unflatten(0, (-1, len(within))) * within
    y = torch.bmm(scores.flatten(0, 1), c)
    return _across(a, b, c, state, table, reverse, y)


def _across(
    a: Tensor, b: Tensor, c: Tensor, state: Tensor, table: _Table, reverse: bool, y: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Add the state's part to y (if any), and the block to the state."""
    size = a.shape[1]
    if table.kept is not None:
        heads = len(table.kept)
        arriving, leaving = table.kept[:, 1 : size + 1], table.kept[:, :size]
        if reverse:
            arriving = arriving.flip(1)
        else:
            leaving = leaving.flip(1)
        a = (a.unflatten(0, (-1, heads)) * arriving).flatten(0, 1)
        b = (b.unflatten(0, (-1, heads)) * leaving).flatten(0, 1)
        kept = state.unflatten(0, (-1, heads)) * table.kept[:, size : size + 1]
        decayed = kept.flatten(0, 1)
    else:
        decayed = state
    y = torch.bmm(a, state) if y is None else torch.baddbmm(y, a, state)
    return y, torch.baddbmm(decayed, b.mT, c)


def _sum(
    a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, decay: Tensor | None, direction: Direction
) -> Tensor:
    """Sum exp(g |i - j|) (a_i . b_j) c_j over the j that frame i sees: (B, T, H, Dv)."""
    batch, frames, heads, depth = a.shape
    size = max(min(BLOCK, frames), 1)
    cut = blocks(lengths, frames, size)
    out = torch.zeros(*c.shape, dtype=wide(c.dtype), device=c.device)
    state = torch.zeros(batch * heads, depth, c.shape[3], dtype=out.dtype, device=c.device)
    if direction == "both" and decay is None:
        for block in cut:
            rows = state[: block.count * heads]
            rows.baddbmm_(take(b, block).mT, take(c, block))
        for block in cut:
            put(out, block, torch.bmm(take(a, block), state[: block.count * heads]))
        return out
    table = _Table.make(decay, size, direction, a)
    reverse = direction == "future"
    for block in reversed(cut) if reverse else cut:
        rows = state[: block.count * heads]
        y, then = _block(*(take(x, block) for x in (a, b, c)), rows, table, reverse)
        rows.copy_(then)
        put(out, block, y)
    if direction == "both":
        state.zero_()
        for block in reversed(cut):
            rows = state[: block.count * heads]
            y, then = _across(*(take(x, block) for x in (a, b, c)), rows, table, True, None)
            rows.copy_(then)
            put(out, block, y, add=True)
    return out


def _checked(decay: Tensor | None, heads: int) -> Tensor | None:
    if decay is None:
        return None
    if decay.shape != (heads,):
        raise ValueError(f"linear_attention: decay is a number for each of {heads} heads, not "
                         f"of shape {tuple(decay.shape)}")  # fmt: skip
    if decay.device.type == "cpu" and bool((decay > 0).any()):
        raise ValueError("linear_attention: decay is a logarithm of at most 0, for weights cannot "
                         f"grow, not {decay.max().item():g}")  # fmt: skip
    return decay.detach()


def _with_ones(v: Tensor) -> Tensor:
    """Append a column of ones, which sums up the weights."""
    return torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)


def _divided(y: Tensor) -> Tensor:
    """Divide by the sum of the weights, the last column."""
    y, total = y[..., :-1], y[..., -1:]
    return y / total.masked_fill(total == 0, 1.0)
