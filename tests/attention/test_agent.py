"""AgentSelfAttention against its formula written out for one item."""

import pytest
import torch
from torch.nn.functional import conv1d

from speechattn.attention import AgentSelfAttention
from speechattn.attention.agent import pool
from speechattn.masks import Chunks

D, H, T = 8, 2, 13
LENGTHS = torch.tensor([T, 3, 0])


def make(**options) -> AgentSelfAttention:
    torch.manual_seed(0)
    return AgentSelfAttention(D, H, **options).double().eval()


def inputs() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(len(LENGTHS), T, D, dtype=torch.float64)


def parts_of(frames: int, agents: int) -> list[list[int]]:
    """Frames of each agent."""
    agents = min(frames, agents)
    return [[t for t in range(frames) if t * agents // frames == a] for a in range(agents)]


def defined(module: AgentSelfAttention, x: torch.Tensor, agents: int) -> torch.Tensor:
    """One item (T, D), head by head."""
    scale, heads = (D // H) ** -0.5, []
    parts = (p.chunk(H, -1) for p in (module.query(x), module.key(x), module.value(x)))
    for q, k, v in zip(*parts, strict=True):
        agent = torch.stack([q[part].mean(0) for part in parts_of(len(x), agents)])
        heard = (agent @ k.T * scale).softmax(1) @ v
        heads.append((q @ agent.T * scale).softmax(1) @ heard)
    y = torch.cat(heads, 1)
    if module.local is not None:
        weight = module.local.weight
        v = module.value(x).T[None]
        bias = module.local.bias
        y = y + conv1d(v, weight.T[:, None], bias, padding=len(weight) // 2, groups=D)[0].T
    return module.output(y)


@pytest.mark.parametrize("options", [{}, {"kernel": 0}, {"kernel": 5}, {"agents": 4}], ids=str)
def test_formula(options):
    module, x = make(**options), inputs()
    if module.local is not None:
        torch.nn.init.normal_(module.local.bias)
    y = module(x, LENGTHS)
    for row, n in enumerate(LENGTHS.tolist()[:2]):
        expected = defined(module, x[row, :n], options.get("agents", 49))
        torch.testing.assert_close(y[row, :n], expected)


def test_parts_are_of_equal_size_as_near_as_may_be():
    x = torch.arange(100.0)[None, :, None, None].repeat(3, 1, 1, 1)
    y, count = pool(x, torch.tensor([100, 10, 3]), 7)
    assert count.tolist() == [7, 7, 3]
    for row, n in enumerate((100, 10, 3)):
        parts = parts_of(n, 7)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        expected = torch.tensor([sum(part) / len(part) for part in parts])
        torch.testing.assert_close(y[row, : len(parts), 0, 0], expected)
        assert (y[row, len(parts) :] == 0).all()


def test_dropout_changes_nothing_on_average():
    module, x = make(dropout=0.3, kernel=0, agents=3).train(), inputs()[:1]
    torch.manual_seed(0)
    y = torch.stack([module(x, LENGTHS[:1]) for _ in range(400)])
    expected = module.eval()(x, LENGTHS[:1])
    torch.testing.assert_close(y.mean(0), expected, atol=0.1, rtol=0)
    assert y.std(0).min() > 0.01


def test_chunks_are_refused():
    with pytest.raises(ValueError, match="AgentSelfAttention sees whole sequences"):
        make()(inputs(), LENGTHS, chunks=Chunks(1))


@pytest.mark.parametrize(
    "options, message",
    [({"heads": 3}, "3 heads"), ({"heads": 2, "agents": 0}, "at least 1"),
     ({"heads": 2, "kernel": 4}, "0 or odd"), ({"heads": 2, "kernel": -1}, "0 or odd")],
)  # fmt: skip
def test_options_that_do_not_go(options, message):
    with pytest.raises(ValueError, match=message):
        AgentSelfAttention(D, **options)
