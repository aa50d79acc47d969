"""CTC against the sum over all alignments, one by one; and against torch's."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import ctc_loss

from speechattn.kernels.lattice import ctc as module
from speechattn.kernels.lattice.ctc import ctc, reference

LENGTHS = torch.tensor([5, 4, 3, 5, 2, 0, 0, 4])
TOKENS = torch.tensor(
    [[1, 2, 1], [2, 2, 9], [1, 1, 1], [9, 9, 9], [1, 2, 2], [9, 9, 9], [1, 9, 9], [2, 2, 1]]
)
TOKEN_LENGTHS = torch.tensor([3, 2, 3, 0, 3, 0, 1, 3])
POSSIBLE = torch.tensor([True, True, False, True, False, True, False, True])


def alignments(frames, text, modified):
    """All ways to give each frame nothing, or a token of the text (its place in it)."""
    for path in itertools.product(range(-1, len(text)), repeat=frames):
        said = [u for t, u in enumerate(path) if u >= 0 and (t == 0 or path[t - 1] != u)]
        if said != list(range(len(text))):
            continue
        pairs = list(itertools.pairwise(path))
        joined = [(a, b) for a, b in pairs if 0 <= a < b and text[a] == text[b]]
        if modified or not joined:
            yield path


def by_enumeration(log_probs, first_scores, repeat_score, modified):
    losses = []
    for b, frames in enumerate(LENGTHS.tolist()):
        text = TOKENS[b, : TOKEN_LENGTHS[b]].tolist()
        totals = []
        for path in alignments(frames, text, modified):
            total = log_probs.new_zeros(())
            for t, u in enumerate(path):
                total = total + log_probs[b, t, text[u] if u >= 0 else 0]
                if u >= 0:
                    first = t == 0 or path[t - 1] != u
                    total = total + (first_scores[b, t] if first else repeat_score)
            totals.append(total)
        none = log_probs.new_full((), -math.inf) + 0 * log_probs[:0].sum()
        losses.append(-torch.logsumexp(torch.stack(totals), 0) if totals else -none)
    return torch.stack(losses)


def random_inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    log_probs = torch.randn(8, 6, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
    first_scores = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return log_probs.to(dtype).requires_grad_(), first_scores


@pytest.fixture(params=["reference", "torch"])
def backend(request, monkeypatch):
    monkeypatch.setenv("SPEECHATTN_KERNELS", request.param)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("repeat_score", [0.0, -0.7])
def test_sum_over_alignments(modified, repeat_score):
    log_probs, first_scores = random_inputs()
    tokens = TOKENS.where(TOKENS != 9, 3)
    ours = ctc(
        log_probs,
        LENGTHS,
        tokens,
        TOKEN_LENGTHS,
        first_scores=first_scores,
        repeat_score=repeat_score,
        modified=modified,
    )
    expected = by_enumeration(log_probs, first_scores, repeat_score, modified)
    possible = POSSIBLE | torch.tensor([modified and b in (2,) for b in range(8)])
    assert ours.isfinite().tolist() == possible.tolist() == expected.isfinite().tolist()
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    weight = torch.arange(1.0, 9.0)
    (g,) = torch.autograd.grad((ours * weight)[possible].sum(), log_probs)
    (h,) = torch.autograd.grad((expected * weight)[possible].sum(), log_probs)
    torch.testing.assert_close(g, h, rtol=1e-10, atol=1e-12)


def cases(seed, batch=6, frames=60, tokens=14, units=9, spread=1.0, dtype=torch.float32):
    """A ragged batch with repeats, an empty text and texts that only just or do not fit."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(batch, frames, units, generator=generator, dtype=torch.float64)
    lengths = torch.randint(frames // 2, frames + 1, (batch,), generator=generator)
    texts = torch.randint(1, min(units, 4), (batch, tokens), generator=generator)
    token_lengths = torch.randint(1, tokens + 1, (batch,), generator=generator)
    token_lengths[:4] = torch.tensor([0, tokens, tokens, tokens])
    texts[1] = 1
    lengths[1:4] = torch.tensor([2 * tokens - 1, 2 * tokens - 2, frames])
    texts[2] = 2
    return logits.to(dtype).requires_grad_(), lengths, texts, token_lengths


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("seed", range(3))
def test_equals_torch(seed, spread):
    logits, lengths, texts, token_lengths = cases(seed, spread=spread, dtype=torch.float64)
    ours = ctc(logits.log_softmax(-1), lengths, texts, token_lengths)
    theirs = ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), texts, lengths, token_lengths, reduction="none"
    )
    assert ours[2] == math.inf
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    weight = torch.arange(1.0, 7.0).where(ours.isfinite(), 0.0)
    fits = ours.isfinite()
    (g,) = torch.autograd.grad((ours * weight)[fits].sum(), logits)
    (h,) = torch.autograd.grad((theirs * weight)[fits].sum(), logits)
    torch.testing.assert_close(g[fits], h[fits], rtol=1e-8, atol=1e-10)
    assert g[2].abs().max() == 0


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("spread", [0.3, 10.0, 100.0])
def test_path_equals_reference(spread, modified):
    logits, lengths, texts, token_lengths = cases(5, 5, 24, 8, spread=spread, dtype=torch.float64)
    first_scores = torch.randn(5, 24, dtype=torch.float64)
    results = []
    for compute in (reference, module.fast):
        options = {"first_scores": first_scores, "repeat_score": -0.2, "modified": modified}
        loss = compute(logits.log_softmax(-1), lengths, texts, token_lengths, **options)
        (gradient,) = torch.autograd.grad(loss[loss.isfinite()].sum(), logits)
        results.append((loss, gradient))
    torch.testing.assert_close(*(r[0] for r in results), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(*(r[1] for r in results), rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("waste", [-1e9, 0.0, 1e9, math.nan])
def test_padding_changes_nothing(waste):
    log_probs, first_scores = random_inputs()
    tokens = TOKENS.where(TOKENS != 9, 1)
    alone = ctc(log_probs, LENGTHS, tokens, TOKEN_LENGTHS, first_scores=first_scores)
    (g,) = torch.autograd.grad(alone[POSSIBLE].sum(), log_probs)
    beyond = torch.arange(6) >= LENGTHS[:, None]
    filled = log_probs.detach().masked_fill(beyond[..., None], waste).requires_grad_()
    scores = first_scores.masked_fill(beyond, waste)
    texts = tokens.masked_fill(torch.arange(3) >= TOKEN_LENGTHS[:, None], -1)
    padded = ctc(filled, LENGTHS, texts, TOKEN_LENGTHS, first_scores=scores)
    (h,) = torch.autograd.grad(padded[POSSIBLE].sum(), filled)
    assert torch.equal(padded, alone)
    assert torch.equal(g, h)
    assert h[beyond].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype):
    logits, lengths, texts, token_lengths = cases(1)
    log_probs = logits.detach().log_softmax(-1).to(dtype).requires_grad_()
    exact = log_probs.detach().double().requires_grad_()
    ours = ctc(log_probs, lengths, texts, token_lengths)
    assert ours.dtype == torch.float32
    expected = ctc(exact, lengths, texts, token_lengths)
    torch.testing.assert_close(ours, expected.float())
    fits = expected.isfinite()
    (g,) = torch.autograd.grad(ours[fits].sum(), log_probs)
    (h,) = torch.autograd.grad(expected[fits].sum(), exact)
    assert g.dtype == dtype
    # Also that half precision does not add up one token's frames in half precision.
    torch.testing.assert_close(g, h.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_far_apart_log_probs():
    # What was once hard: the only way leads through what is next to impossible, frames on end.
    for cost in (50.0, 400.0, 1e6):
        log_probs = torch.full((2, 40, 5), -cost, dtype=torch.float64)
        log_probs[..., 0] = 0.0
        log_probs[1, :20, 3] = 0.0
        log_probs.requires_grad_()
        lengths, token_lengths = torch.tensor([40, 37]), torch.tensor([20, 10])
        texts = torch.arange(20).remainder(4).add(1).expand(2, -1)
        ours = ctc(log_probs, lengths, texts, token_lengths)
        theirs = ctc_loss(
            log_probs.transpose(0, 1), texts, lengths, token_lengths, reduction="none"
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        (g,) = torch.autograd.grad(ours.sum(), log_probs)
        assert torch.isfinite(g).all()
        expected = torch.tensor([-40.0, -37.0], dtype=torch.float64)
        torch.testing.assert_close(g.sum((1, 2)), expected)


def test_units_that_may_not_be():
    # Minus infinity for what no alignment needs, and for what one does.
    log_probs = torch.randn(2, 6, 4, dtype=torch.float64).log_softmax(-1)
    log_probs[0, 2, :2] = -math.inf
    log_probs[1, :, 2] = -math.inf
    log_probs.requires_grad_()
    texts, lengths, token_lengths = (
        torch.tensor([[1, 2], [1, 2]]),
        torch.tensor([6, 6]),
        torch.tensor([2, 2]),
    )
    loss = ctc(log_probs, lengths, texts, token_lengths)
    assert loss.isfinite().tolist() == [True, False]
    (g,) = torch.autograd.grad(loss[0], log_probs)
    assert torch.isfinite(g).all()
    torch.testing.assert_close(g[0].sum(-1), -torch.ones(6, dtype=torch.float64))
    assert g[0, 2, :2].abs().max() == 0
    assert g[1].abs().max() == 0


def test_no_frames_and_no_tokens():
    none = torch.zeros(2, dtype=torch.int64)
    loss = ctc(torch.zeros(2, 0, 5), none, torch.ones(2, 1, dtype=torch.int64), none + 0)
    assert loss.tolist() == [0.0, 0.0]
    log_probs = torch.randn(2, 3, 5).log_softmax(-1).requires_grad_()
    loss = ctc(log_probs, none + 3, torch.zeros(2, 0, dtype=torch.int64), none)
    torch.testing.assert_close(loss, -log_probs[..., 0].sum(1))
    (g,) = torch.autograd.grad(loss.sum(), log_probs)
    assert g[..., 0].tolist() == [[-1.0] * 3] * 2


def test_wrong_shapes_are_named():
    n = torch.tensor([3, 3])
    with pytest.raises(ValueError, match="first_scores"):
        ctc(
            torch.zeros(2, 3, 4),
            n,
            torch.ones(2, 1, dtype=torch.int64),
            n,
            first_scores=torch.zeros(2, 4),
        )
    with pytest.raises(ValueError, match="tokens"):
        ctc(torch.zeros(2, 3, 4), n, torch.ones(3, 1, dtype=torch.int64), n)


def test_memory_is_not_read_before_it_is_written():
    log_probs, first_scores = random_inputs()
    tokens = TOKENS.where(TOKENS != 9, 3)
    results = []
    for fill in (False, True):
        # Then torch fills new memory with NaN.
        torch.use_deterministic_algorithms(fill)
        try:
            loss = ctc(log_probs, LENGTHS, tokens, TOKEN_LENGTHS, first_scores=first_scores)
            results.append((loss, *torch.autograd.grad(loss[POSSIBLE].sum(), log_probs)))
        finally:
            torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
