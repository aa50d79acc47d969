"""CoreContextSelfAttention against its formula, written out query by query."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speechattn.attention import CoreContextSelfAttention, SoftmaxSelfAttention
from speechattn.attention.rotary import rotate
from speechattn.kernels.attention import tiles
from speechattn.masks import Chunks
from tests.attention.test_conformance import FRAMES, LENGTHS, inputs, randomised, real

D, H = 16, 2
OPTIONS = [(3, 3), (4, 0), (5, 10), (1, 2), (7, 0)]


def make(group: int, window: int) -> CoreContextSelfAttention:
    return randomised(CoreContextSelfAttention(D, H, group=group, window=window))


@pytest.fixture(params=["one tile", "tiles"])
def cut(request, monkeypatch):
    if request.param == "tiles":
        monkeypatch.setattr(tiles, "_SMALLEST", 5)
        monkeypatch.setattr(tiles, "_LARGEST", 5)


def defined(module, x, group, window, causal) -> torch.Tensor:
    """One item (T, D)."""
    n, near = len(x), window // group
    q, k, v = (f(x)[None].unflatten(-1, (H, -1)) for f in (module.query, module.key, module.value))
    q, k, v = rotate(q)[0], rotate(k)[0], v[0]
    groups = [list(range(n))[s : s + group] for s in range(0, n, group)]
    y = torch.zeros_like(q)
    for h in range(H):
        core_k, core_v = [], []
        for members in groups:
            significance = (k[members, h] @ q[members[-1], h] / (D // H) ** 0.5).softmax(0)
            core_k.append(significance @ k[members, h])
            core_v.append(significance @ v[members, h])
        for i in range(n):
            keys, values = [], []
            for e, members in enumerate(groups):
                if abs(e - i // group) <= near:
                    seen = [j for j in members if j <= i or not causal]
                    keys += list(k[seen, h])
                    values += list(v[seen, h])
                elif e < i // group or not causal:
                    keys.append(core_k[e])
                    values.append(core_v[e])
            weights = (torch.stack(keys) @ q[i, h] / (D // H) ** 0.5).softmax(0)
            y[i, h] = weights @ torch.stack(values)
    return module.output(y.flatten(1))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("group, window", OPTIONS)
def test_formula(group, window, causal, cut):
    """Outputs and gradients, of items that groups do not divide."""
    module, x = make(group, window), inputs().requires_grad_()
    y = module(x, LENGTHS, chunks=Chunks(1) if causal else None)
    grads = []
    for row, n in enumerate(LENGTHS.tolist()):
        if n:
            expected = defined(module, x[row, :n], group, window, causal)
            torch.testing.assert_close(y[row, :n], expected)
            weight = torch.randn(n, D).double()
            found = [
                torch.autograd.grad(
                    (z * weight).sum(), (x, *module.parameters()), retain_graph=True
                )
                for z in (y[row, :n], expected)
            ]
            grads.append(found)
    for found, expected in grads:
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("group, window", [(1, 0), (1, 3), (4, 24), (23, 23)])
def test_groups_of_one_frame_or_all_near_are_softmax_attention(group, window, cut):
    module, x = make(group, window), inputs()
    plain = SoftmaxSelfAttention(D, H).double().eval()
    plain.load_state_dict(module.state_dict())
    for chunks in (None, Chunks(1)):
        expected = real(plain(x, LENGTHS, chunks=chunks))
        torch.testing.assert_close(real(module(x, LENGTHS, chunks=chunks)), expected)


@pytest.mark.parametrize("sizes", [[1] * 23, [7, 1, 15], [2, 11, 10]], ids=str)
@pytest.mark.parametrize("group, window", OPTIONS)
def test_steps_of_any_size(group, window, sizes):
    """From the near frames, which do not grow, and a core token a group."""
    module, x = make(group, window), inputs()
    done = 0
    with torch.no_grad():
        expected = module(x, torch.full((len(x),), FRAMES), chunks=Chunks(1))
        state, parts = module.init_state(len(x)), []
        for part in x.split(sizes, dim=1):
            y, state = module.step(part, state)
            parts.append(y)
            done += part.shape[1]
            assert state.key.shape[1] == done // group
            assert state.near.frames < window + group
    torch.testing.assert_close(torch.cat(parts, 1), expected)


def test_streams_do_not_forget():
    with pytest.raises(ValueError, match="left_context -1"):
        make(2, 2).init_state(1).keep(3)


def test_dropout_of_weights_keeps_the_expectation(cut):
    torch.manual_seed(0)
    module = CoreContextSelfAttention(D, H, dropout=0.3, group=3, window=3).double()
    x, lengths = inputs()[:1], torch.tensor([FRAMES])
    expected = module.eval()(x, lengths)
    module.train()
    with torch.no_grad():
        mean = module(x.repeat(3000, 1, 1), lengths.repeat(3000)).mean(0)
    torch.testing.assert_close(mean, expected[0], atol=0.02, rtol=0.0)


def test_dropout_is_the_same_backwards(cut):
    torch.manual_seed(0)
    module = CoreContextSelfAttention(4, 1, dropout=0.4, group=2, window=2).double().train()
    x = torch.randn(2, 11, 4).double().requires_grad_()

    def seeded(x):
        torch.manual_seed(3)
        return module(x, torch.tensor([11, 6]))

    assert torch.autograd.gradcheck(seeded, (x,), fast_mode=True)


class Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return result


@pytest.mark.parametrize("chunks", [None, Chunks(1)], ids=str)
def test_no_tensor_of_all_scores(chunks):
    frames = 1600
    module, x = CoreContextSelfAttention(4, 2, group=2, window=8), torch.randn(1, frames, 4)
    with Largest() as seen:
        module(x, torch.tensor([frames]), chunks=chunks).sum().backward()
    assert seen.numel < frames * frames / 4  # with T / 2 core tokens it could be T^2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"group": 0}, "group is at least 1"),
        ({"group": 6, "window": 16}, "window is a multiple of group, 3 times 6, not 16"),
        ({"window": -16}, "window is a multiple"),
    ],
)
def test_errors_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        CoreContextSelfAttention(D, H, **options)
