"""CTC forward-backward for GPUs: two programs an item, one from each end.

The states are those of `lattice.ctc_lattice`: blank after u tokens and the u-th token, columns u of
two planes, all of an item side by side in one block. A frame is two sums of logarithms and a shift
by a column, while the scores of the next frame are loaded. Scores of arcs are added arc by arc. For
the gradient another program goes from the end at the same time, and a second kernel multiplies
both, frame by frame. Sums are in float64, as on other devices, for the gradient of long items.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

INFINITY = tl.constexpr(float("inf"))
# States of a program, frames of one of the second kernel, in the registers of few warps.
_COLUMNS_A_WARP = 64
_MOST_WARPS = 8


def forward_backward(
    log_probs: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    first_scores: Tensor | None,
    repeat_score: float,
    modified: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sum over all alignments, and compute posteriors; see `speechattn.kernels.lattice.ctc.ctc`.

    Posteriors, with `needs_grad`, need two tensors of (B, T, 2, C) float64.

    Returns:
        (B,) float64, the logarithm of the sum; posteriors of blank (B, T) and of each token
        (B, T, U) in the dtype of `log_probs`, zero beyond an item's frames and where no alignment
        is possible.
    """
    log_probs, tokens = log_probs.contiguous(), tokens.contiguous()
    if first_scores is not None:
        first_scores = first_scores.contiguous()
    batch, frames, units = log_probs.shape
    columns = tokens.shape[1] + 1
    total = log_probs.new_empty(batch, dtype=torch.float64)
    blank = token = reached = None
    if needs_grad:
        reached = total.new_empty(2, batch, frames, 2, columns)
        blank = log_probs.new_empty(batch, frames)
        token = log_probs.new_empty(batch, frames, columns - 1)
    block = max(triton.next_power_of_2(columns), 32)
    warps = min(max(block // _COLUMNS_A_WARP, 1), _MOST_WARPS)
    if batch > 0:
        with torch.cuda.device_of(log_probs):  # Triton launches on the current one
            _recursion[(2 if needs_grad else 1, batch)](
                log_probs, lengths, tokens, token_lengths, first_scores,
                total.new_full((1,), repeat_score),  # a plain number would come in 32 bits
                total, reached, batch, frames, units, columns, HAS_FIRST=first_scores is not None,
                MODIFIED=modified, NEEDS_GRAD=needs_grad, BLOCK=block, num_warps=warps,
            )  # fmt: skip
            if needs_grad and frames > 0:
                _posteriors[(frames, batch)](
                    reached, total, lengths, token_lengths, blank, token, batch, frames, columns,
                    BLOCK=block, num_warps=warps,
                )  # fmt: skip
    return total, blank, token


@triton.jit
def _either(a, b):
    """Compute log(exp(a) + exp(b)); it keeps NaN, and two minus infinities give minus infinity."""
    above = a > b  # a GPU's maximum would drop NaN
    high, low = tl.where(above, a, b), tl.where(above, b, a)
    return high + tl.log(1.0 + tl.exp(low - tl.where(high == -INFINITY, 0.0, high)))


@triton.jit
def _scores(
    log_probs, first_scores, text, there, b, t, n, frames, units, HAS_FIRST: tl.constexpr
):  # fmt: skip
    """Load the scores of blank (), tokens (C,) and a token's first frame () at t; 0 beyond n."""
    real = (t >= 0) & (t < n)
    row = tl.cast(b, tl.int64) * frames + t
    blank = tl.load(log_probs + row * units, mask=real, other=0.0).to(tl.float64)
    token = tl.load(log_probs + row * units + text, mask=there & real, other=0.0).to(tl.float64)
    first = blank * 0.0
    if HAS_FIRST:
        first = tl.load(first_scores + row, mask=real, other=0.0).to(tl.float64)
    return blank, token, first


@triton.jit
def _recursion(
    log_probs, lengths, tokens, token_lengths, first_scores, repeat_score, total, reached, batch,
    frames, units, columns, HAS_FIRST: tl.constexpr, MODIFIED: tl.constexpr,
    NEEDS_GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the recursion of an item from its start, with its total, or from its end.

    From the start, `reached` is the sum over all paths to a state, with its score in that frame;
    from the end over all paths from it, without.
    """
    from_end, b = tl.program_id(0), tl.program_id(1)
    n = tl.load(lengths + b).to(tl.int32)
    words = tl.load(token_lengths + b).to(tl.int32)
    repeat = tl.load(repeat_score)
    u = tl.arange(0, BLOCK)
    there = (u >= 1) & (u <= words)  # columns of tokens
    at = tokens + tl.cast(b, tl.int64) * (columns - 1) + u - 1
    text = tl.load(at, mask=there, other=0)
    # Whether the next token may come right after the one of a column.
    follows = u < words
    if not MODIFIED:
        follows = follows & (tl.load(at + 1, mask=follows, other=0) != text)
    rows = reached
    if NEEDS_GRAD:
        item = tl.cast(from_end, tl.int64) * batch + b
        rows = reached + item * frames * 2 * columns + u
    never = tl.full((BLOCK,), -INFINITY, tl.float64)
    if from_end == 0:
        before = tl.maximum(u - 1, 0)
        blank = tl.where(u == 0, 0.0, never)  # before the first frame
        token = never
        score, scores, first = _scores(log_probs, first_scores, text, there, b, 0, n, frames,
                                       units, HAS_FIRST)  # fmt: skip
        for t in range(0, n):
            score_later, scores_later, first_later = _scores(
                log_probs, first_scores, text, there, b, t + 1, n, frames, units, HAS_FIRST
            )
            both = _either(blank, token)
            enter = tl.gather(tl.where(follows | (u == 0), both, blank), before, 0) + first
            token = tl.where(there, _either(token + repeat, enter) + scores, never)
            blank = tl.where(u <= words, both + score, never)
            if NEEDS_GRAD:
                tl.store(rows + t * 2 * columns, blank, mask=u < columns)
                tl.store(rows + (t * 2 + 1) * columns, token, mask=u < columns)
            score, scores, first = score_later, scores_later, first_later
        tl.store(total + b, tl.sum(tl.where(u == words, _either(blank, token), 0.0), 0))
    else:
        after = tl.minimum(u + 1, BLOCK - 1)
        blank = tl.where(u == words, 0.0, never)  # after the last frame
        token = tl.where((u == words) & there, 0.0, never)
        score, scores, first = _scores(log_probs, first_scores, text, there, b, n - 1, n, frames,
                                       units, HAS_FIRST)  # fmt: skip
        for number in range(0, n):
            t = n - 1 - number
            tl.store(rows + t * 2 * columns, blank, mask=u < columns)
            tl.store(rows + (t * 2 + 1) * columns, token, mask=u < columns)
            score_later, scores_later, first_later = _scores(
                log_probs, first_scores, text, there, b, t - 1, n, frames, units, HAS_FIRST
            )
            goes_on, begins = blank + score, token + scores + first
            begins = tl.where(u < words, tl.gather(begins, after, 0), never)
            token = tl.where(there, token + scores + repeat, never)
            blank = _either(goes_on, begins)
            token = tl.where(there, _either(token, tl.where(follows, blank, goes_on)), never)
            score, scores, first = score_later, scores_later, first_later


@triton.jit
def _posteriors(
    reached, total, lengths, token_lengths, blank, token, batch, frames, columns,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the posteriors of blank and of each token in a frame of an item."""
    t, b = tl.program_id(0), tl.program_id(1)
    n = tl.load(lengths + b).to(tl.int32)
    words = tl.load(token_lengths + b).to(tl.int32)
    whole = tl.load(total + b)
    u = tl.arange(0, BLOCK)
    real = (t < n) & (whole != -INFINITY)
    row = tl.cast(b, tl.int64) * frames + t
    here = reached + row * 2 * columns + u
    there = here + tl.cast(batch, tl.int64) * frames * 2 * columns
    seen = real & (u <= words)
    before = tl.load(here, mask=seen, other=-INFINITY)
    after = tl.load(there, mask=seen, other=-INFINITY)
    base = tl.where(real, whole, 0.0)
    probable = tl.sum(tl.exp(before + after - base), 0)
    tl.store(blank + row, probable.to(blank.dtype.element_ty))
    before = tl.load(here + columns, mask=seen, other=-INFINITY)
    after = tl.load(there + columns, mask=seen, other=-INFINITY)
    probable = tl.exp(before + after - base)
    tl.store(token + row * (columns - 1) + u - 1, probable.to(token.dtype.element_ty),
             mask=(u >= 1) & (u < columns))  # fmt: skip
