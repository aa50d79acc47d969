"""DynamicConvolutionCrossAttention against the equations of its paper, a frame at a time."""

import pytest
import torch
from torch.testing import assert_close

from speechattn.attention import DynamicConvolutionCrossAttention
from speechattn.attention.dynamic_convolution import MIN_PRIOR, beta_binomial

D, MEMORY, H, T = 8, 6, 2, 13
FILTERS, LENGTH, REACH = 3, 5, 4
LENGTHS = torch.tensor([13, 5])


def make(**options) -> DynamicConvolutionCrossAttention:
    torch.manual_seed(0)
    options = {"filters": FILTERS, "filter_length": LENGTH, "reach": REACH, **options}
    module = DynamicConvolutionCrossAttention(D, MEMORY, H, **options).double()
    torch.nn.init.normal_(module.mix_bias)
    return module.eval()


def inputs(u: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(2, u, D, dtype=torch.float64)
    memory = torch.randn(2, T, MEMORY, dtype=torch.float64)
    return x, memory, (torch.arange(T) < LENGTHS[:, None])[:, None, None]


def defined(module, x: torch.Tensor, frames: int) -> torch.Tensor:
    """One sequence (U, D) to weights (H, U, T)."""
    dynamic = module.dynamic(torch.tanh(module.hidden(x))).view(len(x), H, LENGTH, FILTERS)
    prior = module.prior[0, 0].flip(0)
    out = []
    for h in range(H):
        last = [torch.tensor(float(j == 0), dtype=torch.float64) for j in range(frames)]
        rows = []
        for u in range(len(x)):
            energies = []
            for j in range(frames):
                f = torch.zeros(2 * FILTERS, dtype=torch.float64)
                for k in range(LENGTH):
                    i = j + k - LENGTH // 2
                    if 0 <= i < frames:
                        taps = torch.cat([module.static[h, k], dynamic[u, h, k]])
                        f = f + taps * last[i]
                p = sum(prior[k] * last[j - k] for k in range(min(REACH, j) + 1))
                hidden = torch.tanh(f @ module.mix[h] + module.mix_bias[h, 0])
                p = torch.as_tensor(p).clamp(min=MIN_PRIOR).log()
                energies.append(hidden @ module.energy[h, :, 0] + p)
            rows.append(torch.stack(energies).softmax(0))
            last = list(rows[-1])
        out.append(torch.stack(rows))
    return torch.stack(out)


def test_weights_are_those_of_the_definition():
    module = make()
    x, memory, mask = inputs()
    x.requires_grad_()
    weights = module.weights(x, module.keys(memory), mask)
    wanted = [defined(module, x[row], frames) for row, frames in enumerate(LENGTHS.tolist())]
    for row, frames in enumerate(LENGTHS.tolist()):
        assert_close(weights[row, ..., :frames], wanted[row])
        assert (weights[row, ..., frames:] == 0).all()
    names = ("hidden", "dynamic", "static", "mix", "mix_bias", "energy")
    given = [p for name, p in module.named_parameters() if name.split(".")[0] in names]
    assert len(given) == 7
    ours = torch.autograd.grad(weights.square().sum(), [x, *given])
    theirs = torch.autograd.grad(sum(w.square().sum() for w in wanted), [x, *given])
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


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
    assert [h.shape for h in heard] == [(2, H, T)]
    for u in range(9):
        y, heard = module.step(x[:, u : u + 1], keys, mask, heard)
        assert_close(y, expected[:, u : u + 1])


def test_the_prior_is_a_distribution_of_moves():
    assert_close(beta_binomial(4, 1.0, 1.0), torch.full((5,), 0.2))  # uniform
    # n = 2, a = 1, b = 2 by hand: C(2, k) B(k + 1, 4 - k) / B(1, 2)
    assert_close(beta_binomial(2, 1.0, 2.0), torch.tensor([1 / 2, 1 / 3, 1 / 6]))
    for reach, alpha, beta in ((10, 0.1, 0.9), (50, 0.1, 0.9), (30, 2.0, 5.0)):
        p = beta_binomial(reach, alpha, beta).double()
        assert p.sum().item() == pytest.approx(1.0, abs=1e-5)
        mean = (p * torch.arange(reach + 1)).sum().item()
        assert mean == pytest.approx(reach * alpha / (alpha + beta), rel=1e-4)


def test_it_does_not_go_back_nor_out_of_reach():
    module = make()
    torch.nn.init.zeros_(module.energy)  # the prior alone
    x, memory, _ = inputs(2)
    weights = module.weights(x, module.keys(memory), None)
    p = module.prior[0, 0].flip(0)
    outside = MIN_PRIOR * (T - REACH - 1)
    assert_close(weights[0, 0, 0, : REACH + 1], p / (p.sum() + outside))
    assert weights[0, 0, 0, REACH + 1 :].max() < 2 * MIN_PRIOR
    assert weights[0, 0, 1, 2 * REACH + 1 :].max() < 1e-4


def test_precision_and_long_memories():
    module = make().float()
    x, memory, mask = inputs(40)
    found = module.weights(x.float(), module.keys(memory.float()), mask)
    expected = make().weights(x, make().keys(memory), mask)
    assert_close(found.double(), expected, atol=1e-4, rtol=1e-3)
    half = module.bfloat16()
    keys = half.keys(memory.bfloat16())
    assert half(x.bfloat16(), keys, mask).dtype == torch.bfloat16
    assert_close(half.weights(x.bfloat16(), keys, mask).sum(-1), torch.ones(2, H, 40))
    assert half(x.bfloat16(), keys, mask).isfinite().all()


@pytest.mark.parametrize(
    "options, message",
    [({"filter_length": 4}, "odd"), ({"reach": 0}, "reach 0"), ({"hidden": -1}, "hidden")],
)
def test_options_that_do_not_go(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicConvolutionCrossAttention(D, MEMORY, H, **options)
