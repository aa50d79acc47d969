"""GatedLinearSelfAttention against the recurrence of its paper for one item."""

import pytest
import torch

from speechattn.attention import GatedLinearSelfAttention
from speechattn.masks import Chunks

D, H, T = 8, 2, 9
LENGTHS = torch.tensor([T, 4])


def make(**options) -> GatedLinearSelfAttention:
    torch.manual_seed(0)
    module = GatedLinearSelfAttention(D, H, **options).double().eval()
    torch.nn.init.normal_(module.norm.weight)
    return module


def inputs(frames: int = T) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, frames, D, dtype=torch.float64)


def passed(q, k, v, left):
    """The recurrence over (T, Dk) and (T, Dv)."""
    state, rows = torch.zeros(k.shape[1], v.shape[1]).double(), []
    for t in range(len(q)):
        state = torch.diag(left[t]) @ state + torch.outer(k[t], v[t])
        rows.append(q[t] @ state)
    return torch.stack(rows)


def defined(module, x, causal, temperature):
    """One item (T, D), head by head."""
    left = torch.sigmoid(module.forget(module.forget_down(x))) ** (1 / temperature)
    heads = []
    for q, k, v, a in zip(
        *(p.chunk(H, -1) for p in (module.query(x), module.key(x), module.value(x), left)),
        strict=True,
    ):
        y = passed(q, k, v, a)
        if not causal:
            y = y + passed(q.flip(0), k.flip(0), v.flip(0), a.flip(0)).flip(0)
            y = y - (q * k).sum(1, keepdim=True) * v  # a frame gets its own once
        heads.append(y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt() * module.norm.weight)
    gate = module.gate(x)
    return module.output(gate * gate.sigmoid() * torch.cat(heads, 1))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
@pytest.mark.parametrize(
    "options, temperature",
    [({}, 16.0), ({"temperature": 1.0, "gate_rank": 2}, 1.0), ({"key_width": 5}, 16.0)],
    ids=str,
)
def test_formula(options, temperature, causal):
    module, x = make(**options), inputs()
    assert module.key.out_features == H * options.get("key_width", D // H // 2)
    y = module(x, LENGTHS, chunks=Chunks(1) if causal else None)
    for row, n in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(y[row, :n], defined(module, x[row, :n], causal, temperature))


def test_gates_depend_on_the_frame():
    """A frame whose gates close hides all before it, and nothing after it."""
    module, x = make(temperature=0.001), inputs()
    with torch.no_grad():
        module.forget.weight.zero_()
        module.forget.weight[:, 0] = 1.0
        module.forget.bias.zero_()
        module.forget_down.weight.zero_()
        module.forget_down.weight[0, 0] = 1.0
        x[..., 0] = 100.0
        x[:, 5, 0] = -100.0
    other = x.clone()
    other[:, 2, 1:] += 1.0
    lengths = torch.tensor([T, T])
    one, two = (module(z, lengths, chunks=Chunks(1)) for z in (x, other))
    assert not torch.allclose(one[:, 4], two[:, 4])
    torch.testing.assert_close(one[:, 5:], two[:, 5:])


def test_steps_of_any_size_are_causal_and_keep_a_state_of_one_size():
    module, x = make(), inputs(90)
    expected = module(x, torch.tensor([90, 90]), chunks=Chunks(1))
    state, parts, start = module.init_state(2), [], 0
    for size in (1, 7, 2, 80):
        y, state = module.step(x[:, start : start + size], state)
        assert state.sum.shape == (2, H, D // H // 2, D // H)
        parts.append(y)
        start += size
    torch.testing.assert_close(torch.cat(parts, 1), expected)


def test_gates_are_not_rounded_to_halves():
    module = make().bfloat16()
    *_, gates = module._project(inputs().bfloat16())
    assert gates.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        *_, gates = make().float()._project(inputs().float())
    assert gates.dtype == torch.float32


@pytest.mark.parametrize(
    "options, message",
    [({"heads": 3}, "3 heads"), ({"heads": 2, "temperature": 0.0}, "temperature above 0")],
)
def test_options_that_do_not_go(options, message):
    with pytest.raises(ValueError, match=message):
        GatedLinearSelfAttention(D, **options)
