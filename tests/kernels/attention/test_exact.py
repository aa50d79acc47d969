"""Attention over lengths against its definition, and the definition against one item at a time."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speechattn.kernels.attention import exact as module
from speechattn.kernels.attention import tiles
from speechattn.kernels.attention.exact import attention, reference
from speechattn.masks import Chunks


def inputs(lengths, queries=None, heads=4, shared=1, depth=4, dtype=torch.double):
    torch.manual_seed(0)
    frames = max(max(lengths), 1)
    batch = len(lengths)
    shapes = [(batch, queries or frames, heads, depth)]
    shapes += [(batch, frames, heads // shared, depth)] * 2
    return [torch.randn(s, dtype=dtype).requires_grad_() for s in shapes], torch.tensor(lengths)


@pytest.fixture(params=["one tile", "tiles"])
def cut(request, monkeypatch):
    if request.param == "tiles":
        monkeypatch.setattr(tiles, "_SMALLEST", 5)
        monkeypatch.setattr(tiles, "_LARGEST", 5)
        monkeypatch.setattr(tiles, "GROUP_SCORES", 1)


def compare(monkeypatch, tensors, lengths, **settings):
    weight = torch.randn_like(tensors[0])
    outputs, gradients = [], []
    for backend in ("reference", "torch"):
        monkeypatch.setenv("SPEECHATTN_KERNELS", backend)
        y = attention(*tensors, lengths, **settings)
        outputs.append(y.detach())
        gradients.append(torch.autograd.grad((y * weight).sum(), tensors, materialize_grads=True))
    assert torch.isfinite(outputs[0]).all()
    assert torch.allclose(*outputs, atol=1e-10)
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    return outputs[1]


LENGTHS = [[1], [11], [12, 0, 5, 1], [0, 7], [0, 0], [6, 6]]


@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("queries", [None, 1, 9])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_definition(lengths, queries, shared, cut, monkeypatch):
    tensors, lengths = inputs(lengths, queries, shared=shared)
    compare(monkeypatch, tensors, lengths)


@pytest.mark.parametrize("chunks", [Chunks(1), Chunks(2, 3), Chunks(7, 0), Chunks(40)], ids=str)
@pytest.mark.parametrize("lengths", [[17], [14, 0, 9, 1]], ids=str)
def test_chunks_equal_masked_definition(lengths, chunks, cut, monkeypatch):
    tensors, lengths = inputs(lengths)
    compare(monkeypatch, tensors, lengths, chunks=chunks, query_lengths=lengths)


@pytest.mark.parametrize("lengths", [[5], [6, 2]], ids=str)
def test_definition_by_item(lengths):
    """Head by head with numbers of its own, neighbouring heads on the same keys."""
    (q, k, v), lengths = inputs(lengths, shared=2)
    y = reference(q, k, v, lengths)
    for b, n in enumerate(lengths.tolist()):
        for h in range(4):
            scores = q[b, :, h] @ k[b, :n, h // 2].T / 2.0
            assert torch.allclose(y[b, :, h], scores.softmax(-1) @ v[b, :n, h // 2], atol=1e-12)


def test_queries_that_are_not_real_are_zero(cut):
    (q, k, v), lengths = inputs([4, 0, 6], queries=8)
    y = attention(q, k, v, lengths, query_lengths=torch.tensor([8, 8, 3]))
    assert y[0].abs().min() > 0 and y[1].abs().max() == 0 and y[2, 3:].abs().max() == 0
    for g in torch.autograd.grad(y.sum(), (q, k, v)):
        assert torch.isfinite(g).all() and g[1].abs().max() == 0


def test_dropout_is_the_same_backwards(cut):
    tensors, lengths = inputs([7, 0, 4], heads=2, depth=2)

    def seeded(*x):
        torch.manual_seed(3)
        return attention(*x, lengths, dropout=0.4)

    assert (seeded(*tensors) - attention(*tensors, lengths)).abs().max() > 0.1
    assert torch.autograd.gradcheck(seeded, tensors, fast_mode=True)


def test_dropout_rate():
    frames = 60
    (q, k, _), lengths = inputs([frames], heads=2, depth=frames)
    v = torch.eye(frames, dtype=torch.double)[None, :, None].expand(1, frames, 2, frames)
    gone = attention(q, k, v, lengths, dropout=0.25) == 0
    assert gone.float().mean().item() == pytest.approx(0.25, abs=0.03)


class Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return result


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.1}, {"chunks": Chunks(50, 50)},
                                      {"chunks": Chunks(1)}], ids=str)  # fmt: skip
def test_no_tensor_of_all_scores(settings):
    frames = 1100
    tensors, lengths = inputs([frames, 600], heads=2, depth=2, dtype=torch.float32)
    with Largest() as seen:
        attention(*tensors, lengths, **settings).sum().backward()
    assert seen.numel < frames * frames / 2


def test_autocast():
    tensors, lengths = inputs([20, 0, 13], dtype=torch.float32)
    exact = attention(*tensors, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = attention(*tensors, lengths)
        gradients = torch.autograd.grad(y.float().sum(), tensors)
    assert y.dtype == torch.bfloat16 and (y - exact).abs().max() < 0.05
    assert all(g.dtype == torch.float32 for g in gradients)


def test_environment_forces_a_backend(monkeypatch):
    tensors, lengths = inputs([4])
    monkeypatch.setattr(module, "tiled", None)
    with pytest.raises(TypeError):
        attention(*tensors, lengths)
    monkeypatch.setenv("SPEECHATTN_KERNELS", "reference")
    attention(*tensors, lengths)


def test_shapes_that_do_not_go_together():
    (q, k, v), lengths = inputs([4])
    with pytest.raises(ValueError, match="3 heads of keys"):
        attention(q, k[:, :, :3], v[:, :, :3], lengths)
    with pytest.raises(ValueError, match="as many queries"):
        attention(q[:, :2], k, v, lengths, chunks=Chunks(2))


@pytest.mark.parametrize("chunks", [None, Chunks(1), Chunks(7, 30)], ids=str)
def test_slopes_over_many_tiles(chunks):
    """Score fall with the distance; against a loop over queries."""
    torch.manual_seed(0)
    lengths = torch.tensor([200, 77])
    q, k, v = (torch.randn(2, 200, 2, 4, dtype=torch.float64) for _ in range(3))
    slopes = torch.tensor([0.5, 0.01])
    y = attention(q, k, v, lengths, chunks=chunks, query_lengths=lengths, slopes=slopes)
    for b, n in enumerate(lengths.tolist()):
        for i in range(0, n, 19):
            first, last = 0, n
            if chunks is not None:
                begin = i // chunks.size * chunks.size
                first = 0 if chunks.left < 0 else max(begin - chunks.left, 0)
                last = min(begin + chunks.size, n)
            distance = (torch.arange(first, last) - i).abs()
            for h in range(2):
                scores = k[b, first:last, h] @ q[b, i, h] / 2 - slopes[h].double() * distance
                expected = scores.softmax(0) @ v[b, first:last, h]
                torch.testing.assert_close(y[b, i, h], expected)
