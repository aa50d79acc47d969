"""The transducer's loss: the sum over all alignments of a text with the joiner's scores.

After u tokens and in frame t the joiner scores V units; blank takes an alignment to the next frame
and a token to the next column (Graves 2012, 1211.3711). Delay penalty and topologies are those of
`speechattn.kernels.lattice.transducer_lattice`, as in k2's `rnnt_loss`.

The joiner's output and its gradient dominate the memory, so nothing else is of their size:
log-softmax is computed for some frames of an item at a time, and again for the gradient.

Legend: see `speechattn.kernels`; S columns that are scored in a frame, here C.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from speechattn.kernels.backend import choose
from speechattn.kernels.lattice.transducer_lattice import (
    Topology,
    arcs,
    check_lengths,
    check_shape,
    lattice,
)
from speechattn.kernels.lattice.transducer_lattice import reference as reference_lattice
from speechattn.kernels.precision import HALF
from speechattn.masks import without_padding

# Scores that are normalised at a time: few enough for a cache, enough for two threads, or a GPU.
_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}


def transducer(
    logits: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    *,
    delay_penalty: float = 0.0,
    topology: Topology = "regular",
) -> Tensor:
    """Return minus the log of the sum over all alignments of each item.

    Args:
        logits: (B, T, U + 1, V) scores, not normalised; padding is not read.
        lengths: (B,) int64 frames.
        tokens: (B, U) int64, none of them 0; padding is not read.
        token_lengths: (B,) int64.
        delay_penalty: for each frame that a token is later, 0 or more (2211.00490).
        topology: see `speechattn.kernels.lattice.transducer_lattice`.

    Returns:
        (B,) float32, or float64 for such input; infinite, with a gradient of zero, where no
        alignment is possible. With a penalty it may be below 0.

    Raises:
        ValueError: the shapes differ.
    """
    batch, _, columns, _ = logits.shape
    check_shape("transducer", "tokens", tokens, batch, columns - 1)
    check_lengths("transducer", lengths, token_lengths, batch)
    with torch.autocast(logits.device.type, enabled=False):
        if choose(logits.device) == "reference":
            return reference(logits, lengths, tokens, token_lengths, delay_penalty, topology)
        units = pad(without_padding(tokens, token_lengths), (0, 1))
        units = units[:, None].expand(logits.shape[:3])
        token, blank = emissions(logits, units, lengths, token_lengths + 1)
        token, blank = token[..., :-1].transpose(1, 2), blank.transpose(1, 2)
        px, py = arcs(token, blank, lengths, delay_penalty, topology)
        return -lattice(px, py, lengths, token_lengths)


def reference(
    logits: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    delay_penalty: float = 0.0,
    topology: Topology = "regular",
) -> Tensor:
    """Compute the definition, a node at a time; see `transducer`."""
    log_probs = (logits.float() if logits.dtype in HALF else logits).log_softmax(-1)
    tokens = without_padding(tokens, token_lengths)
    where = tokens[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
    token = log_probs[:, :, :-1].gather(3, where)[..., 0].transpose(1, 2)
    blank = log_probs[..., 0].transpose(1, 2)
    px, py = arcs(token, blank, lengths, delay_penalty, topology)
    return -reference_lattice(px, py, lengths, token_lengths)


def emissions(
    logits: Tensor, units: Tensor, lengths: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of one unit per column, and of blank.

    Keeps the scores for the backward pass, which makes one tensor of their size, the gradient.

    Args:
        logits: (B, T, S, V), not normalised.
        units: (B, T, S) int64.
        lengths: (B,) frames of an item.
        columns: (B,) columns of an item; those beyond are not read.

    Returns:
        Both (B, T, S), float32 for half precision; 0 beyond an item's frames and columns.
    """
    return _Emissions.apply(logits, units, lengths, columns)


class _Emissions(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, units, lengths, columns):
        dtype = torch.float32 if logits.dtype in HALF else logits.dtype
        token, blank = (
            torch.zeros(logits.shape[:3], dtype=dtype, device=logits.device) for _ in range(2)
        )
        ctx.sizes = list(zip(lengths.tolist(), columns.tolist(), strict=True))
        ctx.pieces = list(_pieces(logits, ctx.sizes))
        for piece in ctx.pieces:
            log_probs = torch.log_softmax(logits[piece], -1, dtype=dtype)
            token[piece] = log_probs.gather(2, units[piece][..., None])[..., 0]
            blank[piece] = log_probs[..., 0]
        ctx.save_for_backward(logits, units)
        return token, blank

    @staticmethod
    @once_differentiable
    def backward(ctx, by_token: Tensor, by_blank: Tensor):
        logits, units = ctx.saved_tensors
        # For small items half of the time goes into writing the gradient: write it once.
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for b, (frames, count) in enumerate(ctx.sizes):
            gradient[b, frames:] = 0.0
            gradient[b, :frames, count:] = 0.0
        either = -(by_token + by_blank)[..., None]
        for piece in ctx.pieces:
            part = gradient[piece]
            if part.dtype in HALF:
                found = torch.softmax(logits[piece], -1, dtype=either.dtype)
            else:
                found = torch.softmax(logits[piece], -1, out=part)
            found *= either[piece]
            found[..., 0] += by_blank[piece]
            found.scatter_add_(2, units[piece][..., None], by_token[piece][..., None])
            if found is not part:
                part.copy_(found)
        return gradient, None, None, None


def _pieces(logits: Tensor, sizes: list[tuple[int, int]]) -> Iterator[tuple]:
    """Yield indices into (B, T, S), each of some frames of an item, without its padding."""
    at_once = _AT_ONCE.get(logits.device.type, _AT_ONCE["cuda"])
    for b, (frames, count) in enumerate(sizes):
        step = max(at_once // max(count * logits.shape[3], 1), 1)
        for t in range(0, frames, step):
            yield b, slice(t, min(t + step, frames)), slice(count)
