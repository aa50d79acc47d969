"""Searches over CTC posteriors alone: the best labels, and the best alignment of given ones.

Graves et al., "Connectionist Temporal Classification" (ICML 2006).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from speechattn.decoding.hypothesis import Hypothesis
from speechattn.errors import SpeechattnError
from speechattn.masks import padding_mask
from speechattn.units import BLANK


class AlignmentError(SpeechattnError):
    """Tokens that no CTC path over so few frames can spell."""


@dataclass(frozen=True)
class TokenSpan:
    """The frames of one token.

    Attributes:
        token: id.
        start: first frame.
        end: one past the last frame.
        score: mean posterior of the token over its frames, 0..1.
    """

    token: int
    start: int
    end: int
    score: float


def ctc_greedy(log_probs: Tensor, lengths: Tensor) -> list[Hypothesis]:
    """Return the best label of each frame, repeats merged and blanks removed.

    <sos/eos> is never a label: CTC is not trained on it.

    Args:
        log_probs: (B, T, V).
        lengths: (B,) int64; 0 gives an empty hypothesis.

    Returns:
        B hypotheses; the score is the log-probability of the path, not of all that spell it.
    """
    b, t, v = log_probs.shape
    best, label = log_probs[..., : v - 1].max(-1)  # (B, T)
    real = padding_mask(lengths, t)
    score = best.double().masked_fill(~real, 0.0).sum(1).tolist()
    previous = torch.cat([label.new_full((b, 1), BLANK), label[:, :-1]], 1)
    emits = real & (label != BLANK) & (label != previous)  # (B, T)
    tokens = torch.split(label[emits], emits.sum(1).tolist())
    return [Hypothesis(u.tolist(), s, {"ctc": s}) for u, s in zip(tokens, score, strict=True)]


def merge_blanks(log_probs: Tensor, lengths: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Make one frame of each run of frames that are blank almost surely.

    Such a frame is blank, with the probability that all of the run are. What is spelt, as a whole
    or as a beginning, so loses the paths that have a token there: together at most n (1 -
    threshold) of the probability of all paths, n frames being merged.

    Args:
        log_probs: (B, T, V), blank first.
        lengths: (B,) int64, each at least 1.
        threshold: posterior of blank above which a frame is merged; 1 merges none.

    Returns:
        (B, T', V) and (B,): what is left.
    """
    b, t, _ = log_probs.shape
    blank = log_probs[..., BLANK]
    real = padding_mask(lengths, t)
    sure = real & (blank.double() > math.log(threshold))
    first = real.clone()  # of the frames that become one
    first[:, 1:] &= ~(sure[:, 1:] & sure[:, :-1])
    place = (first.cumsum(1) - 1).masked_fill(~real, 0)  # (B, T)
    lengths = first.sum(1)
    merged = blank.double().new_zeros(b, int(lengths.max()))
    merged.scatter_add_(1, place, blank.double().masked_fill(~real, 0.0))
    at = first.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : merged.size(1)]
    rows = torch.arange(b, device=at.device)[:, None]
    left = log_probs[rows, at]  # (B, T', V)
    left[..., 1:].masked_fill_(sure[rows, at][..., None], -math.inf)
    left[..., BLANK] = merged.to(left.dtype)
    return left, lengths


def ctc_forced_align(log_probs: Tensor, tokens: list[int]) -> list[TokenSpan]:
    """Return the most probable CTC path that spells the tokens.

    Of two equally good paths the one that moves on later is taken.

    Args:
        log_probs: (T, V), one utterance without padding.
        tokens: U ids, none of them blank.

    Returns:
        U spans in order, disjoint; frames between them are blank.

    Raises:
        AlignmentError: fewer frames than tokens, counting the blank that has to stand between
            two equal ones.
    """
    states, _ = ctc_best_path(log_probs, tokens)
    spans = []
    if not tokens:
        return spans
    # State 2u + 1 is token u; states never decrease, so a token's frames are one run.
    odd = torch.arange(1, 2 * len(tokens), 2)
    starts = torch.searchsorted(states, odd).tolist()
    ends = torch.searchsorted(states, odd, right=True).tolist()
    for token, start, end in zip(tokens, starts, ends, strict=True):
        score = log_probs[start:end, token].double().exp().mean().item()
        spans.append(TokenSpan(token, start, end, score))
    return spans


def ctc_best_path(log_probs: Tensor, tokens: list[int]) -> tuple[Tensor, float]:
    """Viterbi over the states blank, token 0, blank, token 1, ..., blank.

    Args:
        log_probs: (T, V), one utterance without padding.
        tokens: U ids, none of them blank.

    Returns:
        The state of each frame (T,) int64 on the CPU, in [0, 2U + 1), never decreasing; and the
        path's log-probability.

    Raises:
        AlignmentError: too few frames.
    """
    t_max, v = log_probs.shape
    if any(not BLANK < token < v for token in tokens):
        raise ValueError(f"tokens have to be in 1..{v - 1}, got {tokens}")
    repeats = sum(a == b for a, b in zip(tokens, tokens[1:], strict=False))
    if t_max < len(tokens) + repeats:
        raise AlignmentError(
            f"{t_max} frames cannot be aligned with {len(tokens)} tokens, which need at least "
            f"{len(tokens) + repeats}"
        )
    if t_max == 0:
        return torch.empty(0, dtype=torch.int64), 0.0
    label = torch.full((2 * len(tokens) + 1,), BLANK)
    label[1::2] = torch.tensor(tokens, dtype=torch.int64)
    emit = log_probs.double().cpu()[:, label]  # (T, 2U + 1)
    # A blank is skipped between two tokens that differ.
    skips = torch.zeros(len(label), dtype=torch.bool)
    skips[3::2] = label[3::2] != label[1:-2:2]
    no_skip = torch.zeros(len(label), dtype=torch.float64).masked_fill(~skips, -math.inf)

    score = torch.full((len(label),), -math.inf, dtype=torch.float64)
    score[:2] = emit[0, :2]
    came = torch.zeros(t_max, len(label), dtype=torch.int64)  # how many states the move was
    moves = torch.full((3, len(label)), -math.inf, dtype=torch.float64)
    for t in range(1, t_max):
        moves[0] = score
        moves[1, 1:] = score[:-1]
        moves[2, 2:] = score[:-2] + no_skip[2:]
        score, came[t] = moves.max(0)
        score = score + emit[t]
    # The path ends on the last token or on the blank after it.
    state = len(label) - 1
    if tokens and score[state - 1] >= score[state]:
        state -= 1
    total = score[state].item()
    if total == -math.inf:
        raise AlignmentError("every alignment of the tokens has probability 0")
    back = came.tolist()
    path = [state]
    for t in range(t_max - 1, 0, -1):
        state -= back[t][state]
        path.append(state)
    return torch.tensor(path[::-1]), total
