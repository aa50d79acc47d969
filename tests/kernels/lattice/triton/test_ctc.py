"""CTC in Triton against its definition, an arc at a time, and against the torch path."""

import math

import pytest
import torch

from speechattn.kernels.lattice.ctc import ctc, fast, reference

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv("SPEECHATTN_KERNELS", "triton")


def cases(device, frames=8, tokens=3, units=4, spread=2.0, dtype=torch.double):
    """Ragged: repeats, an empty text, texts that only just and that do not fit, no frames."""
    torch.manual_seed(0)
    lengths = [frames, 2 * tokens - 1, 2 * tokens - 2, 3, 0, 0, frames - 1]
    lengths = torch.tensor(lengths).clamp(max=frames)
    token_lengths = torch.tensor([tokens, tokens, tokens, 0, 0, 1, 3])
    token_lengths = token_lengths.clamp(max=(frames + 1) // 2)
    logits = spread * torch.randn(len(lengths), frames, units, dtype=torch.double)
    texts = torch.randint(1, units, (len(lengths), tokens))
    texts[1:3] = 2
    texts[6, 1] = texts[6, 0]
    first_scores = torch.randn(len(lengths), frames, dtype=torch.double)
    log_probs = logits.log_softmax(-1).to(device, dtype).requires_grad_()
    return log_probs, *(x.to(device) for x in (lengths, texts, token_lengths, first_scores))


def compare(expect, log_probs, *texts, rtol=1e-9, **settings):
    """Losses and gradients, with the definition in float64."""
    doubles = log_probs.detach().double().requires_grad_()
    a, b = expect(doubles, *texts, **settings), ctc(log_probs, *texts, **settings)
    fits = a.isfinite()
    assert fits.any() and b.isfinite().tolist() == fits.tolist()
    torch.testing.assert_close(b, a.to(b.dtype), rtol=rtol, atol=rtol)
    weight = torch.arange(1.0, len(a) + 1, device=a.device).where(fits, 0.0)
    (g,) = torch.autograd.grad((a * weight)[fits].sum(), doubles)
    (h,) = torch.autograd.grad((b * weight.to(b.dtype))[fits].sum(), log_probs)
    assert h.dtype == log_probs.dtype
    torch.testing.assert_close(h.double(), g, rtol=rtol, atol=rtol)
    return b


@pytest.mark.parametrize("repeat_score", [0.0, -0.7])
@pytest.mark.parametrize("modified", [False, True])
def test_equals_definition(modified, repeat_score, device):
    log_probs, *texts, first_scores = cases(device)
    settings = {"repeat_score": repeat_score, "modified": modified}
    b = compare(reference, log_probs, *texts, first_scores=first_scores, **settings)
    assert b.isfinite().tolist() == [True, True, modified, True, True, False, True]
    if not modified:
        compare(reference, log_probs, *texts, **settings)


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float, 2e-6), (torch.bfloat16, 2 * 2**-8)], ids=str
)
def test_other_precisions(dtype, tolerance, device):
    log_probs, *texts, first_scores = cases(device, dtype=dtype)
    b = compare(reference, log_probs, *texts, first_scores=first_scores.to(dtype), rtol=tolerance)
    assert b.dtype == torch.float32


def test_more_columns_than_a_warp_has(device):
    log_probs, *texts, first_scores = cases(device, 16, 70, 4)
    compare(fast, log_probs, *texts, first_scores=first_scores, repeat_score=0.3)


def test_what_stands_in_the_padding(device):
    log_probs, lengths, texts, token_lengths, first_scores = cases(device)
    alone = ctc(log_probs, lengths, texts, token_lengths, first_scores=first_scores)
    fits = alone.isfinite()
    (g,) = torch.autograd.grad(alone[fits].sum(), log_probs)
    beyond = torch.arange(8, device=device) >= lengths[:, None]
    filled = log_probs.detach().masked_fill(beyond[..., None], math.nan).requires_grad_()
    scores = first_scores.masked_fill(beyond, math.nan)
    hidden = torch.arange(3, device=device) >= token_lengths[:, None]
    padded = ctc(filled, lengths, texts.masked_fill(hidden, -1), token_lengths, first_scores=scores)
    (h,) = torch.autograd.grad(padded[fits].sum(), filled)
    assert torch.equal(padded, alone) and torch.equal(g, h)
    assert h[beyond].abs().max() == 0


@pytest.mark.parametrize("cost", [400.0, 1e6, math.inf])
def test_far_apart(cost, device):
    """The only way leads through what is next to impossible; with infinity there is none."""
    log_probs = torch.full((2, 12, 3), -cost, dtype=torch.double, device=device)
    log_probs[..., 0] = 0.0
    log_probs[0, :, 1] = 0.0
    log_probs.requires_grad_()
    texts = torch.tensor([[1, 1, 1], [1, 2, 1]], device=device)
    n = torch.tensor([12, 9], device=device)
    b = compare(reference, log_probs, n, texts, torch.tensor([3, 3], device=device))
    assert b.isfinite().tolist() == [True, cost < math.inf]


def test_nan_stays_with_its_item(device):
    log_probs, *texts, _ = cases(device)
    broken = log_probs.detach().clone()
    broken[0, 3] = math.nan
    a, b = ctc(log_probs.detach(), *texts), ctc(broken, *texts)
    assert b[0].isnan() and torch.equal(a[1:], b[1:])
    broken.requires_grad_()
    (g,) = torch.autograd.grad(ctc(broken, *texts)[[0, 1, 4]].sum(), broken)
    assert g[0].isnan().any() and g[1:].isfinite().all()


def test_is_what_runs(device, monkeypatch):
    from speechattn.kernels.lattice.triton import ctc as module

    monkeypatch.setattr(module, "forward_backward", None)
    with pytest.raises(TypeError):
        ctc(*cases(device)[:4])


def test_no_frames_and_no_tokens(device):
    none = torch.zeros(2, dtype=torch.int64, device=device)
    log_probs = torch.zeros(2, 0, 5, device=device, requires_grad=True)
    loss = ctc(log_probs, none, none[:, None] + 1, none)
    assert loss.tolist() == [0.0, 0.0]
    loss.sum().backward()
    assert log_probs.grad.shape == log_probs.shape
    log_probs = torch.randn(2, 3, 5, device=device).log_softmax(-1).requires_grad_()
    loss = ctc(log_probs, none + 3, none.new_zeros(2, 0), none)
    torch.testing.assert_close(loss, -log_probs[..., 0].sum(1))
    assert ctc(log_probs[:0], none[:0], none.new_zeros(0, 2), none[:0]).shape == (0,)


@pytest.mark.gpu
@pytest.mark.parametrize("modified", [False, True])
def test_on_a_gpu(modified, device):
    log_probs, *texts, first_scores = cases(device, 700, 150, 40, dtype=torch.float)
    compare(fast, log_probs, *texts, first_scores=first_scores, rtol=1e-5, modified=modified)
