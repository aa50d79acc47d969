"""The sum over all alignments of a transducer, from the scores of its arcs, and its gradient.

An alignment goes from node (0, 0) to node (T, U) of a lattice: `py[u, t]` is the score of a blank
from frame t to the next after u tokens, `px[u, t]` that of a token from u tokens to u + 1 in frame
t. The topology defines the frame after a token, and follows from the shape of `px`, as in k2's
`mutual_information_recursion`:

    regular, px (B, U, T + 1):    the same frame; any number of tokens a frame (Graves, 1211.3711).
                                  The last column of px, where no frame is left, is not read.
    modified, px (B, U, T):       the next frame; one token a frame at most.
    constrained, px (B, U, T):    as modified, and the score of a token includes that of the blank
                                  after it in the same frame: `arcs` adds it.

Both recursions are one. Count steps d rather than frames, d = t + u in the regular lattice and
d = t in the others; then a blank leads from (d, u) to (d + 1, u) and a token to (d + 1, u + 1).
In the regular lattice all nodes of an anti-diagonal are computed at once, in T + U steps for all
items. The backward pass has no logarithms: the share of a node's sum that arrived by blank is known
from the forward pass, and occupations are split accordingly.

Legend: see `speechattn.kernels`; D steps, R rows (C or U).
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from speechattn.kernels.backend import choose

Topology = Literal["regular", "modified", "constrained"]

_NEVER = -float("inf")


def arcs(
    token: Tensor,
    blank: Tensor,
    lengths: Tensor,
    delay_penalty: float = 0.0,
    topology: Topology = "regular",
) -> tuple[Tensor, Tensor]:
    """Return the scores of arcs of a topology, with a delay penalty.

    A token in frame t of T gets delay_penalty * ((T - 1) / 2 - t) (2211.00490), 0 on average, so
    that it affects when tokens are emitted, not whether.

    Args:
        token: (B, U, T) log-probability of a token after u tokens in frame t.
        blank: (B, U + 1, T) of a blank there.
        lengths: (B,) frames.
        delay_penalty: for each frame that a token is later.
        topology: see the module.

    Returns:
        px (B, U, T + 1) for the regular topology, else (B, U, T); and py (B, U + 1, T).
    """
    if topology not in get_args(Topology):
        raise ValueError(f"topology {topology!r}: choose one of {', '.join(get_args(Topology))}")
    if topology == "constrained":
        token = token + blank[:, 1:]
    if delay_penalty:
        t = torch.arange(token.shape[2], device=token.device)
        early = (lengths[:, None, None] - 1) / 2 - t  # (B, 1, T)
        token = token + delay_penalty * early.to(token.dtype)
    return (pad(token, (0, 1), value=_NEVER) if topology == "regular" else token), blank


def lattice(px: Tensor, py: Tensor, lengths: Tensor, token_lengths: Tensor) -> Tensor:
    """Return the log of the sum over all alignments of each item.

    Recursions are in float64 whatever the scores are. Padding is not read.

    Args:
        px: (B, U, T + 1) or (B, U, T) scores of tokens; minus infinity excludes an arc.
        py: (B, U + 1, T) scores of blanks; likewise.
        lengths: (B,) int64 frames.
        token_lengths: (B,) int64.

    Returns:
        (B,) in the dtype of px; minus infinity, with a gradient of zero, where there is no
        alignment.

    Raises:
        ValueError: the shapes differ.
    """
    _check(px, py, lengths, token_lengths)
    if choose(px.device) == "reference":
        return reference(px, py, lengths, token_lengths)
    return _Lattice.apply(px, py, lengths, token_lengths, False)[0]


def occupied_lattice(
    px: Tensor, py: Tensor, lengths: Tensor, token_lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `lattice`, and the posteriors of arcs.

    Returns:
        (B,) as `lattice`; and its gradients with respect to px and py, which have none themselves.
    """
    _check(px, py, lengths, token_lengths)
    return _Lattice.apply(px, py, lengths, token_lengths, True)


def check_shape(operation: str, name: str, value: Tensor, *shape: int) -> None:
    """Check a shape.

    Raises:
        ValueError: it is another; the message names the operation and the argument.
    """
    if value.shape != shape:
        raise ValueError(
            f"{operation}: {name} has to be of {shape} to go with the others, not of "
            f"{tuple(value.shape)}"
        )


def check_lengths(operation: str, lengths: Tensor, token_lengths: Tensor, batch: int) -> None:
    """Check the shapes of lengths; see `check_shape`."""
    check_shape(operation, "lengths", lengths, batch)
    check_shape(operation, "token_lengths", token_lengths, batch)


def _check(px: Tensor, py: Tensor, lengths: Tensor, token_lengths: Tensor) -> None:
    batch, columns, frames = py.shape
    if px.shape != (batch, columns - 1, frames + 1):  # not the regular topology
        check_shape("lattice", "px", px, batch, columns - 1, frames)
    check_lengths("lattice", lengths, token_lengths, batch)


def reference(px: Tensor, py: Tensor, lengths: Tensor, token_lengths: Tensor) -> Tensor:
    """Compute the definition, a node at a time; see `lattice`."""
    totals = []
    regular = px.shape[2] > py.shape[2]
    for b, (frames, tokens) in enumerate(
        zip(lengths.tolist(), token_lengths.tolist(), strict=True)
    ):
        never = py.new_full((), _NEVER, dtype=torch.float64)
        nodes = {(0, 0): never.new_zeros(())}
        for t in range(frames + 1):
            for u in range(tokens + 1):
                arriving = []
                before = t if regular else t - 1
                if t > 0:
                    arriving.append(nodes[t - 1, u] + py[b, u, t - 1].double())
                if u > 0 and 0 <= before < frames:
                    arriving.append(nodes[before, u - 1] + px[b, u - 1, before].double())
                arriving = [score for score in arriving if score != _NEVER]
                if (t, u) != (0, 0):
                    found = torch.logsumexp(torch.stack(arriving), 0) if arriving else never
                    nodes[t, u] = found
        # The gradient is zero, and not missing, where there is no alignment.
        totals.append(nodes[frames, tokens] + 0 * (px[:0].sum() + py[:0].sum()))
    return torch.stack(totals).to(px.dtype)


class _Lattice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, px, py, lengths, token_lengths, occupations):
        needs_grad = any(ctx.needs_input_grad[:2])
        batch, columns, frames = py.shape
        regular = px.shape[2] > frames
        t = torch.arange(frames, device=py.device)
        u = torch.arange(columns, device=py.device)
        early = (t < lengths[:, None])[:, None]  # (B, 1, T)
        real = u[:, None] <= token_lengths[:, None, None]  # (B, C, 1)
        stay = _steps(py, early & real, columns - 1 if regular else 0)
        move = _steps(px[..., :frames], early & real[:, 1:], columns - 1 if regular else 0)
        reached = _recursion(stay, move)
        ends = lengths + token_lengths if regular else lengths
        where = (ends, token_lengths, torch.arange(batch, device=py.device))
        total = reached[where]
        if not (needs_grad or occupations):
            return total.to(px.dtype), None, None
        possible = (total != _NEVER).to(total.dtype)
        by_token, by_blank = _occupations(stay, reached, where, possible)
        px_occupied = _frames(by_token, px.shape[2], regular).to(px.dtype)
        py_occupied = _frames(by_blank, frames, regular).to(py.dtype)
        ctx.mark_non_differentiable(px_occupied, py_occupied)
        if needs_grad:
            ctx.save_for_backward(px_occupied, py_occupied)
        return total.to(px.dtype), px_occupied, py_occupied

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_):
        px_occupied, py_occupied = ctx.saved_tensors
        gradient = gradient[:, None, None]
        return px_occupied * gradient, py_occupied * gradient, None, None, None


def _skewed(rows: Tensor) -> Tensor:
    """Return a view (B, R, D) of (B, R, D + 1), row u moved u to the right behind the row above."""
    batch, count, width = rows.shape
    return rows.as_strided((batch, count, width - 1), (count * width, width - 1, 1))


def _steps(scores: Tensor, real: Tensor, skew: int) -> Tensor:
    """Convert scores (B, R, T) to scores by steps (D, R, B) float64, -inf where not real."""
    scores = scores.masked_fill(~real, _NEVER)
    if skew:
        scores = _skewed(pad(scores, (0, skew + 1), value=_NEVER))
    # In two moves: a conversion that also transposes is slow.
    return scores.double().permute(2, 1, 0).contiguous()


def _frames(steps: Tensor, frames: int, regular: bool) -> Tensor:
    """Convert values by steps (D, R, B) back to (B, R, T)."""
    count, batch = steps.shape[1:]
    steps = steps.permute(2, 1, 0)
    if not regular:
        return steps
    rows = steps.new_zeros(batch, count, steps.shape[2] + 1)
    if count:
        _skewed(rows).copy_(steps)
    return rows[..., :frames]


def _recursion(stay: Tensor, move: Tensor) -> Tensor:
    """Return the log of the sum over all paths from the start to a node, (D + 1, C, B).

    From the scores of blanks (D, C, B) and of tokens (D, C - 1, B).
    """
    steps, columns, batch = stay.shape
    reached = stay.new_empty(steps + 1, columns * batch)
    reached[0] = _NEVER
    reached[0, :batch] = 0.0
    arriving = move.new_empty(move[0].numel()) if steps else None
    rows = (reached, reached[:, : (columns - 1) * batch], reached[:, batch:])
    now, leaving, later = (x.unbind(0) for x in rows)
    scores = zip(stay.flatten(1).unbind(0), move.flatten(1).unbind(0), strict=True)
    # The loop takes all the time: few calls per step, into allocated memory.
    for d, (blank, token) in enumerate(scores):
        torch.add(now[d], blank, out=now[d + 1])
        torch.add(leaving[d], token, out=arriving)
        torch.logaddexp(later[d + 1], arriving, out=later[d + 1])
    return reached.view(steps + 1, columns, batch)


def _occupations(stay: Tensor, reached: Tensor, where, possible: Tensor) -> tuple[Tensor, Tensor]:
    """Return the posteriors of tokens (D, C - 1, B) and of blanks (D, C, B).

    Overwrites `stay` and `reached`, see `_recursion`; `where` indexes the nodes where items end,
    and `possible` (B,) is 1 for items that have an alignment, else 0.
    """
    steps, columns, batch = stay.shape
    stay += reached[:-1]
    # The split does not matter at nodes that no path reaches.
    came = stay.sub_(reached[1:].clamp_(min=-1e300)).exp_().clamp_(max=1.0)  # by blank
    went = 1.0 - came[:, 1:]
    nodes = reached.zero_()
    nodes[where] = possible
    nodes = nodes.view(steps + 1, columns * batch)
    rows = (nodes, nodes[:, : (columns - 1) * batch], nodes[:, batch:])
    now, leaving, later = (x.unbind(0) for x in rows)
    blanks, tokens = came.flatten(1).unbind(0), went.flatten(1).unbind(0)
    for d in reversed(range(steps)):
        now[d].addcmul_(now[d + 1], blanks[d])
        leaving[d].addcmul_(later[d + 1], tokens[d])
    nodes = nodes.view(steps + 1, columns, batch)
    return went.mul_(nodes[1:, 1:]), came.mul_(nodes[1:])
