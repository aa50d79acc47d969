"""Connectionist temporal classification: the sum over all alignments of a text, and its gradient.

An alignment of U tokens to the frames of an item visits the S = 2U + 1 states blank, first token,
blank, ..., last token, blank from left to right, one a frame, starting in one of the first two
states and ending in one of the last two (Graves et al. 2006, "Connectionist Temporal
Classification"). From a frame to the next it stays, goes to the next state, or skips a blank;
between two equal tokens the standard topology forbids the skip, the modified one does not (k2's
`ctc_topo(modified=True)`: every token may follow every other at once, and the frames of two equal
tokens count once for each way to divide them). Its score is the sum of the log probabilities it
visits and of two scores on its arcs: `first_scores[t]` where frame t is the first of a token, and
`repeat_score` where a token goes on for another frame.

The arcs' scores become scores of states: with D_t = w_(t+1) - w_t,

    sum over tokens u of w(first frame of u) = U w_0 + sum over t of D_t #{u: not begun in frame t}

and the number of tokens that have not begun is known from the state. So they are added to the log
probabilities once, before the recursion. The recursion from the end is the one from the start over
reversed frames and states: both run in one loop over T, as 2B sequences.

Legend: see `speechattn.kernels`; S = 2U + 1 states.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from speechattn.kernels.backend import choose
from speechattn.kernels.lattice.ctc_lattice import (
    build,
    log_prob_gradient,
    log_total,
    posteriors,
    recursion,
)
from speechattn.kernels.precision import HALF
from speechattn.masks import padding_mask

_NEVER = -float("inf")


def ctc(
    log_probs: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    *,
    first_scores: Tensor | None = None,
    repeat_score: float = 0.0,
    modified: bool = False,
) -> Tensor:
    """Return minus the log of the sum over all alignments of each item.

    Recursions are in float64 whatever the input is: a sum of hundreds of log probabilities leaves
    too few digits of float32 for the gradient.

    Args:
        log_probs: (B, T, V), padding is not read; minus infinity excludes a unit. The gradient is
            minus the posterior of a unit in a frame (torch's own adds the probability, which a
            log-softmax subtracts again). Half precision is computed in float32.
        lengths: (B,) int64 frames.
        tokens: (B, U) int64, none of them 0; padding is not read.
        token_lengths: (B,) int64.
        first_scores: (B, T), for a token whose first frame is t; None for none. No gradient.
        repeat_score: for each further frame of a token.
        modified: equal tokens may follow each other without a blank between them.

    Returns:
        (B,) float32, or float64 for such input; infinite, with a gradient of zero, where no
        alignment is possible.

    Raises:
        ValueError: the shapes differ.
    """
    batch = log_probs.shape[0]
    for name, value, shape in (
        ("lengths", lengths, (batch,)),
        ("tokens", tokens, (batch, tokens.shape[-1])),
        ("token_lengths", token_lengths, (batch,)),
        ("first_scores", first_scores, log_probs.shape[:2]),
    ):
        if value is not None and value.shape != shape:
            raise ValueError(
                f"ctc: log_probs of {tuple(log_probs.shape)} want {name} of {tuple(shape)}, not "
                f"{tuple(value.shape)}"
            )
    if log_probs.dtype in HALF:
        log_probs = log_probs.float()
    arguments = log_probs, lengths, tokens, token_lengths, first_scores, repeat_score, modified
    backend = choose(log_probs.device, "ctc")
    with torch.autocast(log_probs.device.type, enabled=False):
        if backend == "reference":
            return reference(*arguments)
        return _Ctc.apply(*arguments, backend)


def reference(
    log_probs: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    first_scores: Tensor | None = None,
    repeat_score: float = 0.0,
    modified: bool = False,
) -> Tensor:
    """Compute the definition, an arc at a time; see `ctc`."""
    losses = []
    for b, frames in enumerate(lengths.tolist()):
        text = tokens[b, : token_lengths[b]].tolist()
        scores = log_probs[b].double()
        never = scores.new_full((), _NEVER)
        states = [0]
        for token in text:
            states += [token, 0]
        alpha = [scores.new_zeros(()), *[never] * (len(states) - 1)]  # before the first frame
        for t in range(frames):
            first = 0.0 if first_scores is None else first_scores[b, t].double()
            new = []
            for s, unit in enumerate(states):
                arcs = [alpha[s] + (repeat_score if unit else 0.0)]
                if s >= 1:
                    arcs.append(alpha[s - 1] + (first if unit else 0.0))
                if s >= 3 and unit and (modified or unit != states[s - 2]):
                    arcs.append(alpha[s - 2] + first)
                arcs = [arc for arc in arcs if arc > _NEVER]
                total = torch.logsumexp(torch.stack(arcs), 0) + scores[t, unit] if arcs else never
                new.append(total)
            alpha = new
        ends = [end for end in alpha[-2:] if end > _NEVER]
        # The gradient is zero, and not missing, where no alignment is possible.
        total = torch.logsumexp(torch.stack(ends), 0) if ends else never + 0 * scores[:0].sum()
        losses.append(-total)
    return torch.stack(losses).to(log_probs.dtype)


def fast(
    *texts: Tensor,
    first_scores: Tensor | None = None,
    repeat_score: float = 0.0,
    modified: bool = False,
) -> Tensor:
    """Compute with torch, whatever `choose` says; see `ctc`."""
    return _Ctc.apply(*texts, first_scores, repeat_score, modified, "torch")


class _Ctc(torch.autograd.Function):
    """All items and both directions in one loop over the frames.

    With torch it needs two tensors of (T, 2B, S) float64, half of that without a gradient, and
    keeps (B, T, C) for the backward pass. NaN in one item spreads to others.
    """

    @staticmethod
    def forward(ctx, *arguments) -> Tensor:
        log_probs, _, tokens, token_lengths, *_, backend = arguments
        needs_grad = ctx.needs_input_grad[0]
        compute: Callable[..., tuple] = _forward_backward
        if backend == "triton":
            from speechattn.kernels.lattice.triton import ctc as triton

            compute = triton.forward_backward
        total, blank, token = compute(*arguments[:-1], needs_grad)
        if needs_grad:
            beyond = ~padding_mask(token_lengths, tokens.shape[1])
            ctx.save_for_backward(tokens.masked_fill(beyond, 0), blank, token)
            ctx.units = log_probs.shape[2]
        return -total.to(log_probs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        tokens, blank, token = ctx.saved_tensors
        result = log_prob_gradient(tokens, blank, token, gradient, ctx.units)
        return result, None, None, None, None, None, None, None


def _forward_backward(*arguments) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute `speechattn.kernels.lattice.triton.ctc.forward_backward` with torch."""
    log_probs, *_, needs_grad = arguments
    lattice = build(*arguments)
    reached = recursion(lattice)
    total = log_total(lattice, reached)
    blank = token = None
    if needs_grad:
        blank, token = (x.to(log_probs.dtype) for x in posteriors(lattice, reached, total))
    return total + lattice.constant, blank, token
