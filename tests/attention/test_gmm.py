"""GmmCrossAttention against the mixture of its paper, written out."""

import math

import pytest
import torch
from torch.testing import assert_close

from speechattn.attention import GmmCrossAttention, gmm

D, MEMORY, H, K, T = 8, 6, 2, 3, 13
LENGTHS = torch.tensor([13, 5])


def make(**options) -> GmmCrossAttention:
    torch.manual_seed(0)
    return GmmCrossAttention(D, MEMORY, H, mixtures=K, **options).double().eval()


def inputs(u: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(2, u, D, dtype=torch.float64)
    memory = torch.randn(2, T, MEMORY, dtype=torch.float64)
    return x, memory, (torch.arange(T) < LENGTHS[:, None])[:, None, None]


def defined(module: GmmCrossAttention, x: torch.Tensor, frames: int) -> torch.Tensor:
    """One sequence (U, D) to densities (H, U, T): V2 of the paper's table 1."""
    raw = module.mixture(torch.tanh(module.hidden(x))).view(len(x), 3, H, K)
    out = torch.zeros(H, len(x), frames, dtype=torch.float64)
    for h in range(H):
        mean = torch.zeros(K, dtype=torch.float64)
        for u in range(len(x)):
            weight = raw[u, 0, h].softmax(0)
            mean = mean + (1 + raw[u, 1, h].exp()).log()
            spread = (1 + raw[u, 2, h].exp()).log() + gmm.MIN_SPREAD
            for j in range(frames):
                bell = torch.exp(-((j - mean) ** 2) / (2 * spread**2))
                out[h, u, j] = (weight * bell / (2 * math.pi * spread**2).sqrt()).sum()
    return out


@pytest.mark.parametrize("normalise", [True, False])
def test_weights_are_those_of_the_definition(normalise):
    module = make(normalise=normalise)
    x, memory, mask = inputs()
    x.requires_grad_()
    weights = module.weights(x, module.keys(memory), mask)
    assert weights.shape == (2, H, 4, T)
    wanted = []
    for row, frames in enumerate(LENGTHS.tolist()):
        expected = defined(module, x[row], frames)
        if normalise:
            expected = expected / expected.sum(-1, keepdim=True)
        wanted.append(expected)
        assert_close(weights[row, ..., :frames], expected)
        assert (weights[row, ..., frames:] == 0).all()
    given = [p for name, p in module.named_parameters() if name.split(".")[0] in LEARNT]
    ours = torch.autograd.grad(weights.square().sum(), [x, *given])
    theirs = torch.autograd.grad(sum(w.square().sum() for w in wanted), [x, *given])
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


LEARNT = ("hidden", "mixture")


def test_what_is_heard_is_the_weighted_sum():
    module = make()
    x, memory, mask = inputs()
    keys = module.keys(memory)
    values = module.value(memory).view(2, T, H, D // H)
    heard = torch.einsum("bhut,bthd->buhd", module.weights(x, keys, mask), values)
    assert_close(module(x, keys, mask), module.output(heard.flatten(2)))


def test_steps_equal_the_parallel_pass():
    module = make()
    x, memory, mask = inputs(9)
    keys = module.keys(memory)
    expected, heard = module(x, keys, mask), module.start(keys)
    assert [h.shape for h in heard] == [(2, H, K)]
    for u in range(9):
        y, heard = module.step(x[:, u : u + 1], keys, mask, heard)
        assert_close(y, expected[:, u : u + 1])


def test_it_moves_as_told_and_only_forward():
    module = make(move=4.0, spread=1.0)
    torch.nn.init.zeros_(module.mixture.weight)
    x, memory, _ = inputs(6)
    weights = module.weights(x, module.keys(torch.randn(2, 60, MEMORY).double()), None)
    assert weights.argmax(-1).unique(dim=1)[0, 0].tolist() == [4, 8, 12, 16, 20, 24]
    away = (weights * torch.arange(60)).sum(-1)
    assert_close(away[0, 0], torch.arange(4.0, 28.0, 4.0, dtype=torch.float64), atol=0.05, rtol=0)
    # Past the end of a short memory the last frame is heard, not nothing.
    short = module.weights(x, module.keys(memory[:, :5]), None)
    assert_close(short.sum(-1), torch.ones(2, H, 6, dtype=torch.float64))
    assert (short[:, :, -1, -1] > 0.99).all()


@pytest.mark.parametrize("most", [1, 2 * H * K * T * 3])
def test_a_few_tokens_at_a_time(most, monkeypatch):
    module = make()
    x, memory, mask = inputs(7)
    x.requires_grad_()
    whole = module(x, module.keys(memory), mask)
    (wanted,) = torch.autograd.grad(whole.square().sum(), x)
    monkeypatch.setattr(gmm, "MAX_DENSITIES", most)
    parts = module(x, module.keys(memory), mask)
    (found,) = torch.autograd.grad(parts.square().sum(), x)
    assert_close(parts, whole)
    assert_close(found, wanted)


def test_half_precision_counts_frames_exactly():
    module = make(move=4.0, spread=1.0)
    torch.nn.init.zeros_(module.mixture.weight)
    exact = module.weights(inputs(90)[0], module.keys(torch.zeros(2, 400, MEMORY).double()), None)
    module = module.bfloat16()
    x, keys = inputs(90)[0].bfloat16(), module.keys(torch.zeros(2, 400, MEMORY).bfloat16())
    # The moves themselves are rounded to 8 bits, not where they lead.
    found = module.weights(x, keys, None)
    assert found.dtype == torch.float32 and module(x, keys, None).dtype == torch.bfloat16
    assert (found.argmax(-1) - exact.argmax(-1)).abs().max() <= 4


def test_options_that_do_not_go():
    with pytest.raises(ValueError, match="mixtures is at least 1"):
        GmmCrossAttention(D, MEMORY, H, mixtures=0)
    with pytest.raises(ValueError, match="frames above 0"):
        GmmCrossAttention(D, MEMORY, H, move=0.0)
    with pytest.raises(ValueError, match="3 heads"):
        GmmCrossAttention(D, MEMORY, 3)
