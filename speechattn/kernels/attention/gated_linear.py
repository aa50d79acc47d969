"""Linear attention with a decay that depends on the data, a number per channel of the keys.

    S_i = diag(exp(g_i)) S_(i-1) + k_i v_i^T,    y_i = q_i S_i

(Gated Linear Attention, 2312.06635, section 4.1), so that frame j counts for frame i >= j with

    sum over channels d of q_id k_jd exp(G_id - G_jd),    G_i = g_0 + ... + g_i.

The paper is causal. To both sides, the same recurrence also runs from the end, with the same gates,
and is added; frame i itself counts once. Time and memory are linear in T: block by block with a
running state as in section 4.2, blocks computed again in the backward pass.

Within a block exp(G_i - G_j) can be split into a factor of i and a factor of j, which makes it a
matrix product, only as long as the gates of the block are not too strong. So there are two forms.
Where no channel's gates sum up below -SPAN, the factors are taken relative to the middle of that
sum. Else the block is halved, the right half attends to the left one with factors relative to the
frame between them, whose exponents are never above zero, and so on within each half. (The paper's
secondary chunking, section 4.3, computes the smallest blocks element by element instead.)

Legend: see `speechattn.kernels`; c frames of a block, n items of it.
"""

import torch
from torch import Tensor
from torch.nn import functional

from speechattn.kernels.attention.time_blocks import Block, blocks, put, take, wide
from speechattn.kernels.backend import choose
from speechattn.kernels.precision import operands
from speechattn.masks import padding_mask

# Frames of a block, a power of two.
BLOCK = 64
# Float32 goes to exp(88): products of two parts and of what they meet have to fit.
SPAN = 40.0
# Gates are clamped to this: exp of it is zero in any dtype.
_CLOSED = -1000.0


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, lengths: Tensor, *, causal: bool = True
) -> Tensor:
    """Attend without softmax in a ragged batch, with gates on the state.

    Args:
        q, k: (B, T, H, Dk).
        v: (B, T, H, Dv).
        gates: (B, T, H, Dk) g, the logarithm of the decay of the frames before at this one; at most
            0, minus infinity included. Autocast does not round them.
        lengths: (B,) int64.
        causal: a frame sees itself and those before it, else its whole item.

    Returns:
        (B, T, H, Dv), zero beyond an item's length; in autocast's dtype where it is on. Sums of
        halves are float32.

    Raises:
        ValueError: the gates' shape is not that of the keys.
    """
    if gates.shape != k.shape:
        raise ValueError(
            f"gated_linear_attention: gates are one for each channel of the keys, "
            f"{tuple(k.shape)}, not {tuple(gates.shape)}"
        )
    gates = gates.to(wide(gates.dtype))
    q, k, v = operands(q, k, v)
    backend = choose(q.device, "gated_linear_attention", q)
    if backend == "triton":
        from speechattn.kernels.attention.triton.gated_linear import (
            gated_linear_attention as compute,
        )
    else:
        compute = {"reference": reference, "torch": tiled}[backend]
    with torch.autocast(q.device.type, enabled=False):
        return compute(q, k, v, gates, lengths, causal).to(v.dtype)


def gated_linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute causal `gated_linear_attention` of the next frames.

    Args:
        q, k: (B, c, H, Dk).
        v: (B, c, H, Dv).
        gates: (B, c, H, Dk).
        state: from `linear_attention_state` or the step before.

    Returns:
        (B, c, H, Dv), and the state with these frames.
    """
    batch, frames, heads, _ = q.shape
    gates = gates.to(wide(gates.dtype))
    q, k, v = operands(q, k, v)
    running, parts = state.flatten(0, 1), []
    with torch.autocast(q.device.type, enabled=False):
        for start in range(0, frames, BLOCK):
            block = Block(slice(0, batch), batch, start, min(start + BLOCK, frames), None)
            y, running = _block(*(take(x, block) for x in (q, k, v, gates)), running, False)
            parts.append(y.unflatten(0, (batch, heads)).transpose(1, 2))
    y = torch.cat(parts, 1) if parts else v
    return y.to(v.dtype), running.unflatten(0, (batch, heads))


def reference(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, lengths: Tensor, causal: bool = True
) -> Tensor:
    """Compute the definition, frame by frame, in float32 at least; see `gated_linear_attention`."""
    q, k, v = (x.to(wide(x.dtype)) for x in (q, k, v))
    real = padding_mask(lengths, q.shape[1])[..., None, None]  # (B, T, 1, 1)
    q, k, v = (x.masked_fill(~real, 0.0) for x in (q, k, v))
    y = _recurrence(q, k, v, gates)
    if not causal:
        # Padding comes first then, and is zero.
        ahead = _recurrence(*(x.flip(1) for x in (q, k, v, gates))).flip(1)
        y = y + ahead - (q * k).sum(-1, keepdim=True) * v
    return y.masked_fill(~real, 0.0)


def tiled(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, lengths: Tensor, causal: bool = True
) -> Tensor:
    """Compute block by block, in float32 at least; see `gated_linear_attention`."""
    y = _Scan.apply(q, k, v, gates, lengths, False)
    return y if causal else y + _Scan.apply(q, k, v, gates, lengths, True)


class _Scan(torch.autograd.Function):
    """One direction; reversed, it runs from the end and leaves out a frame's own key."""

    @staticmethod
    def forward(ctx, q, k, v, gates, lengths, reverse):
        cut = blocks(lengths, q.shape[1], BLOCK)
        if reverse:
            cut.reverse()
        heads = q.shape[2]
        y = torch.zeros(v.shape, dtype=wide(v.dtype), device=v.device)
        state = y.new_zeros(len(q) * heads, q.shape[3], v.shape[3])
        before = []
        for block in cut:
            rows = state[: block.count * heads]
            before.append(rows.clone())
            part, then = _block(*_ordered((q, k, v, gates), block, reverse), rows, reverse)
            rows.copy_(then)
            put(y, block, part.flip(1) if reverse else part)
        ctx.save_for_backward(q, k, v, gates, *before)
        ctx.cut, ctx.reverse = cut, reverse
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (*operands,) = ctx.saved_tensors[:4]
        before, reverse = ctx.saved_tensors[4:], ctx.reverse
        heads = grad.shape[2]
        found = [torch.zeros(x.shape, dtype=wide(x.dtype), device=x.device) for x in operands]
        depth = operands[0].shape[3]
        later = grad.new_zeros(len(grad) * heads, depth, grad.shape[3])  # of the state after
        for block, state in zip(reversed(ctx.cut), reversed(before), strict=True):
            rows = later[: block.count * heads]
            leaves = [*_ordered(operands, block, reverse), state]
            leaves = [x.detach().requires_grad_() for x in leaves]
            with torch.enable_grad():
                outputs = _block(*leaves, reverse)
            (dy,) = _ordered((grad,), block, reverse)
            *parts, earlier = torch.autograd.grad(outputs, leaves, (dy, rows))
            rows.copy_(earlier)
            for whole, part in zip(found, parts, strict=True):
                put(whole, block, part.flip(1) if reverse else part)
        return *(g.to(x.dtype) for g, x in zip(found, operands, strict=True)), None, None


def _ordered(
    tensors: tuple[Tensor, ...] | list[Tensor], block: Block, reverse: bool
) -> list[Tensor]:
    """Return a block of each, (n H, c, Dk or Dv), in the order of the pass."""
    parts = [take(x, block) for x in tensors]
    return [x.flip(1) for x in parts] if reverse else parts


def _block(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: Tensor, strict: bool
) -> tuple[Tensor, Tensor]:
    """Compute a block (n H, c, Dv) in the order of the pass, and the state (n H, Dk, Dv) after it.

    If `strict` a frame does not see itself.
    """
    total = gates.detach().sum(1)
    # Reads one number, for which a GPU has to synchronise.
    if float(total.min()) >= -SPAN:
        after = gates.cumsum(1)  # G (n H, c, Dk)
        # The middle cancels out, and gets no gradient.
        middle = total[:, None] / 2
        arriving = q * (after - middle).exp()
        scores = torch.bmm(arriving, (k * (middle - after).exp()).mT)
        y = torch.bmm(scores.tril(-1 if strict else 0), v)
    else:
        # In double: a closed gate must not cancel the digits of open ones after it.
        after = gates.double().clamp(min=_CLOSED).cumsum(1)
        y = _halves(q, k, v, after)
        if not strict:
            y = y + (q * k).sum(-1, keepdim=True) * v
    end = after[:, -1:]
    y = torch.baddbmm(y, q * after.exp().to(q), state)
    left = end.exp().to(q).mT  # (n H, Dk, 1)
    return y, torch.baddbmm(state * left, (k * (end - after).exp().to(k)).mT, v)


def _halves(q: Tensor, k: Tensor, v: Tensor, after: Tensor) -> Tensor:
    """Attend from the frames of a block to those before them, with no exponent above zero.

    `after` (n H, c, Dk) float64 is the sum of the gates up to each frame.
    """
    frames, half = q.shape[1], 1
    size = 1 << (frames - 1).bit_length()
    if size > frames:
        # Pad with zero frames at the end, which no frame sees; the sum of gates stays.
        q, k, v = (functional.pad(x, (0, 0, 0, size - frames)) for x in (q, k, v))
        after = torch.cat((after, after[:, -1:].expand(-1, size - frames, -1)), dim=1)
    y = torch.zeros_like(v)
    while half < size:
        one, two, three, sums = (x.unflatten(1, (-1, 2, half)) for x in (q, k, v, after))
        between = sums[:, :, 0, -1:]  # (n H, c / 2h, 1, Dk)
        right = one[:, :, 1] * (sums[:, :, 1] - between).exp().to(q)
        left = two[:, :, 0] * (between - sums[:, :, 0]).exp().to(k)
        part = (right @ left.mT) @ three[:, :, 0]  # (n H, c / 2h, h, Dv)
        y = y + torch.stack((torch.zeros_like(part), part), dim=2).flatten(1, 3)
        half *= 2
    return y[:, :frames]


def _recurrence(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    """Compute one direction of the definition."""
    state = torch.zeros_like(k[:, 0, ..., None] * v[:, 0, :, None]) if q.shape[1] else None
    outputs = []
    for i in range(q.shape[1]):
        state = gates[:, i, ..., None].exp() * state + k[:, i, ..., None] * v[:, i, :, None]
        outputs.append(torch.einsum("bhd,bhde->bhe", q[:, i], state))
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(v)
