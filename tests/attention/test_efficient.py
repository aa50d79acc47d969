"""EfficientSelfAttention against its formula written out for one item."""

import pytest
import torch

from speechattn.attention import EfficientSelfAttention
from speechattn.masks import Chunks

D, H, T = 8, 2, 9
LENGTHS = torch.tensor([T, 4])


def make() -> EfficientSelfAttention:
    torch.manual_seed(0)
    return EfficientSelfAttention(D, H).double().eval()


def inputs(frames: int = T) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, frames, D, dtype=torch.float64)


def defined(module, x):
    """One item (T, D), head by head: all weights of a frame are positive and add up to one."""
    heads = []
    parts = (p.chunk(H, -1) for p in (module.query(x), module.key(x), module.value(x)))
    for q, k, v in zip(*parts, strict=True):
        weights = q.softmax(1) @ k.softmax(0).T
        torch.testing.assert_close(weights.sum(1), torch.ones(len(x)).double())
        heads.append(weights @ v)
    return module.output(torch.cat(heads, 1))


def test_formula():
    module, x = make(), inputs()
    y = module(x, LENGTHS)
    for row, n in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(y[row, :n], defined(module, x[row, :n]))


def test_causal_is_the_formula_over_the_frames_so_far():
    module, x = make(), inputs().requires_grad_()
    y = module(x, LENGTHS, chunks=Chunks(1))
    expected = torch.stack([defined(module, x[0, : i + 1])[-1] for i in range(T)])
    torch.testing.assert_close(y[0], expected)
    wanted = [x, *module.parameters()]
    for one, other in zip(
        torch.autograd.grad(y[0].square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
def test_keys_of_any_size(causal):
    """In float32: exp of them would be infinite, and one frame outweighs all before it."""
    module, x = make(), inputs(100)
    with torch.no_grad():
        module.key.weight.mul_(1000.0)
    chunks, lengths = Chunks(1) if causal else None, torch.tensor([100, 61])
    exact = module(x, lengths, chunks=chunks)
    module.float()
    x = x.float().requires_grad_()
    y = module(x, lengths, chunks=chunks)
    torch.testing.assert_close(y[0].double(), exact[0], atol=1e-3, rtol=1e-3)
    (grad,) = torch.autograd.grad(y[0].sum(), x)
    assert grad.isfinite().all()


def test_steps_of_any_size_are_causal_and_keep_a_state_of_one_size():
    module, x = make(), inputs(90)
    expected = module(x, torch.tensor([90, 90]), chunks=Chunks(1))
    state, parts, start = module.init_state(2), [], 0
    for size in (1, 7, 2, 80):
        y, state = module.step(x[:, start : start + size], state)
        assert state.sum.shape == (2, H, D // H, D // H)
        assert state.total.shape == (2, 1, H, D // H)
        parts.append(y)
        start += size
    torch.testing.assert_close(torch.cat(parts, 1), expected)
    assert state.keep(-1) is state
    with pytest.raises(ValueError, match="newest 3 only"):
        state.keep(3)


def test_heads_that_do_not_go():
    with pytest.raises(ValueError, match="3 heads"):
        EfficientSelfAttention(D, 3)
