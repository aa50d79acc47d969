"""LightningSelfAttention against its formula written out for one item."""

import pytest
import torch
from torch.nn.functional import silu

from speechattn.attention import (
    EfficientSelfAttention,
    GatedLinearSelfAttention,
    LightningSelfAttention,
)
from speechattn.encoders import ConformerEncoder
from speechattn.masks import Chunks

D, H, T = 8, 2, 11
LENGTHS = torch.tensor([T, 4])


def make(**options) -> LightningSelfAttention:
    torch.manual_seed(0)
    module = LightningSelfAttention(D, H, **options).double().eval()
    torch.nn.init.normal_(module.norm.weight)
    return module


def inputs(frames: int = T) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, frames, D, dtype=torch.float64)


def defined(module: LightningSelfAttention, x: torch.Tensor, causal: bool, factor: float = 1.0):
    """One item (T, D), head by head."""
    place = torch.arange(len(x))
    apart = (place[:, None] - place).double()
    heads = []
    for h, slope in enumerate((2**-4.0, 2**-8.0)):  # ALiBi's for two heads
        part = slice(h * D // H, (h + 1) * D // H)
        q, k, v = silu(module.query(x)), silu(module.key(x)), module.value(x)
        weights = (q[:, part] @ k[:, part].T) * torch.exp(-factor * slope * apart.abs())
        heads.append((weights * (apart >= 0) if causal else weights) @ v[:, part])
    y = torch.cat(heads, 1)
    y = y / (y.square().mean(1, keepdim=True) + 1e-6).sqrt() * module.norm.weight
    if module.gate is not None:
        y = y * module.gate(x).sigmoid()
    return module.output(y)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
@pytest.mark.parametrize(
    "options, factor",
    [({}, 1.0), ({"gate": False}, 1.0), ({"decay": 0.5}, 0.5), ({"decay": 0.0}, 0.0)],
    ids=str,
)
def test_formula(options, factor, causal):
    module, x = make(**options), inputs()
    y = module(x, LENGTHS, chunks=Chunks(1) if causal else None)
    for row, n in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(y[row, :n], defined(module, x[row, :n], causal, factor))


def test_steps_of_any_size_are_causal_and_keep_a_state_of_one_size():
    module, x = make(), inputs(40)
    expected = module(x, torch.tensor([40, 40]), chunks=Chunks(1))
    state, parts, start = module.init_state(2), [], 0
    for size in (1, 7, 2, 30):
        y, state = module.step(x[:, start : start + size], state)
        assert state.sum.shape == (2, H, D // H, D // H)
        parts.append(y)
        start += size
    torch.testing.assert_close(torch.cat(parts, 1), expected)


def test_a_sum_cannot_forget():
    state = make().init_state(1)
    assert state.keep(-1) is state
    with pytest.raises(ValueError, match="newest 5 only: set left_context to -1"):
        state.keep(5)


def test_in_half_precision_the_state_is_not():
    module = make().bfloat16()
    assert module.init_state(1).sum.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", [LightningSelfAttention, GatedLinearSelfAttention, EfficientSelfAttention]
)
def test_causal_encoders_stream_with_linear_attention(kind):
    torch.manual_seed(0)
    encoder = ConformerEncoder(
        6, D, attention_heads=H, linear_units=16, num_blocks=2, subsampling="linear",
        conv_kernel=3, attention=kind, causal=True, chunk_size=1,
    ).eval()  # fmt: skip
    x = torch.randn(2, 12, 6)
    expected, _ = encoder(x, torch.tensor([12, 12]))
    state, parts = encoder.init_state(2), []
    for frame in range(0, 12, 3):
        y, state = encoder.step(x[:, frame : frame + 3], state, last=frame == 9)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options, message", [({"heads": 3}, "3 heads"), ({"heads": 2, "decay": -1.0}, "at least 0")]
)
def test_options_that_do_not_go(options, message):
    with pytest.raises(ValueError, match=message):
        LightningSelfAttention(D, **options)
