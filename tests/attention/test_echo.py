"""EchoSelfAttention against its branches, each computed by itself."""

import pytest
import torch

from speechattn.attention import EchoSelfAttention, LocalSelfAttention, SoftmaxSelfAttention
from speechattn.masks import Chunks
from tests.attention.test_conformance import FRAMES, LENGTHS, inputs, randomised, real

D, H = 16, 2


def branches(module: EchoSelfAttention, windows) -> list[torch.nn.Module]:
    """Plain and local attention with the same projections, and nothing after the heads."""
    found = [SoftmaxSelfAttention(D, H), *(LocalSelfAttention(D, H, window=w) for w in windows)]
    for branch in found:
        branch.double().eval().load_state_dict(module.state_dict(), strict=False)
        torch.nn.init.eye_(branch.output.weight)
        torch.nn.init.zeros_(branch.output.bias)
    return found


@pytest.mark.parametrize("chunks", [None, Chunks(1)], ids=str)
@pytest.mark.parametrize("windows", [(3,), (2, 5, 9)], ids=str)
def test_formula(windows, chunks):
    module, x = randomised(EchoSelfAttention(D, H, windows=windows)), inputs()
    gate = (x @ module.gate.weight.T + module.gate.bias).softmax(-1)
    parts = [branch(x, LENGTHS, chunks=chunks) for branch in branches(module, windows)]
    merged = torch.einsum("btk,kbtd->btd", gate, torch.stack(parts))
    torch.testing.assert_close(real(module(x, LENGTHS, chunks=chunks)), real(module.output(merged)))


def test_begins_with_equal_weights():
    """And a gate that is driven to one branch leaves that one alone."""
    torch.manual_seed(0)
    module, x = EchoSelfAttention(D, H, windows=(2, 5)).double().eval(), inputs()
    parts = torch.stack([branch(x, LENGTHS) for branch in branches(module, (2, 5))])
    torch.testing.assert_close(real(module(x, LENGTHS)), real(module.output(parts.mean(0))))
    for k, part in enumerate(parts):
        with torch.no_grad():
            module.gate.bias.zero_()[k] = 1000.0
        torch.testing.assert_close(real(module(x, LENGTHS)), real(module.output(part)))


def test_each_frame_has_weights_of_its_own():
    module, x = randomised(EchoSelfAttention(D, H)), inputs()
    assert (module.gate(x).softmax(-1)[0].std(0) > 0.01).all()
    assert module.gate.out_features == 4


@pytest.mark.parametrize("sizes", [[1] * 23, [7, 1, 15]], ids=str)
def test_steps_of_any_size(sizes):
    module, x = randomised(EchoSelfAttention(D, H, windows=(3, 8))), inputs()
    with torch.no_grad():
        expected = module(x, torch.full((len(x),), FRAMES), chunks=Chunks(1))
        state, parts = module.init_state(len(x)), []
        for part in x.split(sizes, dim=1):
            y, state = module.step(part, state)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), expected)


def test_windows_cost_a_row_of_the_gate():
    plain = sum(p.numel() for p in SoftmaxSelfAttention(D, H).parameters())
    for windows in ((), (3,), (3, 9, 27)):
        module = EchoSelfAttention(D, H, windows=windows)
        rows = 1 + len(windows) if windows else 0
        assert sum(p.numel() for p in module.parameters()) == plain + rows * (D + 1)


def test_windows_of_no_frame():
    with pytest.raises(ValueError, match="at least 1 frame"):
        EchoSelfAttention(D, H, windows=(4, 0))
