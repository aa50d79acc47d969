"""Relative attention, tiled, against its definition; and the definition against loops."""

import math
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from speechattn.kernels.attention import relative as module
from speechattn.kernels.attention import relative_tiles, tiles
from speechattn.kernels.attention.relative import (
    reference,
    relative_attention,
    relative_attention_step,
)
from speechattn.masks import Chunks

NAMES = ("q", "k", "v", "p", "content_bias", "position_bias")


def inputs(lengths, heads=2, depth=4, dtype=torch.double, size=1.0, frames=None):
    torch.manual_seed(0)
    frames = frames or max(lengths)
    shapes = [(len(lengths), frames, heads, depth)] * 3
    shapes += [(2 * frames - 1, heads, depth), (heads, depth), (heads, depth)]
    tensors = [(size * torch.randn(s, dtype=dtype)).requires_grad_() for s in shapes]
    return tensors, torch.tensor(lengths)


@pytest.fixture(params=["one tile", "tiles", "tiles, weights kept"])
def cut(request, monkeypatch):
    """How the batch is cut: into tiles of 5 queries, single items and single heads, or not."""
    if request.param != "one tile":
        monkeypatch.setattr(tiles, "_SMALLEST", 5)
        monkeypatch.setattr(tiles, "_LARGEST", 5)
        monkeypatch.setattr(tiles, "GROUP_SCORES", 1)
        monkeypatch.setattr(relative_tiles, "PART_KEYS", 1)
    if request.param == "tiles":
        monkeypatch.setattr(relative_tiles, "KEPT_WEIGHTS", 0)


def compare(tensors, lengths, chunks=None, tolerance=1e-10):
    weight = torch.randn_like(tensors[0])
    outputs, gradients = [], []
    for compute in (reference, module.tiled):
        y = compute(*tensors, lengths=lengths, chunks=chunks)
        outputs.append(y.detach())
        gradients.append(torch.autograd.grad((y * weight).sum(), tensors))
    assert torch.isfinite(outputs[0]).all()
    assert (outputs[0] - outputs[1]).abs().max() < tolerance
    with torch.no_grad():
        again = module.tiled(*tensors, lengths=lengths, chunks=chunks)  # by a path of its own
    assert (again - outputs[1]).abs().max() < tolerance
    for name, a, b in zip(NAMES, *gradients, strict=True):
        assert (a - b).abs().max() < tolerance * max(1, a.abs().max()), name
    return outputs[1]


def test_definition_by_loops():
    (q, k, v, p, u, w), lengths = inputs([6, 3], dtype=torch.double)
    chunks = Chunks(2, 1)
    y = reference(q, k, v, p, u, w, lengths=lengths, chunks=chunks)
    for b, n in enumerate(lengths.tolist()):
        for h in range(2):
            for i in range(6):
                if i >= n:
                    assert y[b, i, h].abs().max() == 0
                    continue
                seen = [j for j in range(n) if i // 2 * 2 - 1 <= j < i // 2 * 2 + 2]
                scores = [
                    torch.dot(q[b, i, h] + u[h], k[b, j, h])
                    + torch.dot(q[b, i, h] + w[h], p[5 - i + j, h])
                    for j in seen
                ]
                weights = (torch.stack(scores) / math.sqrt(4)).softmax(0)
                expected = sum(a * v[b, j, h] for a, j in zip(weights, seen, strict=True))
                assert torch.allclose(y[b, i, h], expected, atol=1e-12)


LENGTHS = [[1], [2], [13], [10, 10], [12, 0, 5, 1], [0, 7], [0, 0], [3, 17, 16]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_definition(lengths, cut):
    tensors, lengths = inputs(lengths, frames=max(max(lengths), 1))
    compare(tensors, lengths)


@pytest.mark.parametrize("chunks", [Chunks(1), Chunks(1, 0), Chunks(2, 3), Chunks(3), Chunks(5, 2),
                                    Chunks(7, 0), Chunks(8, 30), Chunks(40)], ids=str)  # fmt: skip
@pytest.mark.parametrize("lengths", [[17], [14, 0, 9, 1]], ids=str)
def test_chunks_equal_masked_definition(lengths, chunks, cut):
    compare(*inputs(lengths), chunks)


@pytest.mark.parametrize("lengths", [[150], [133, 57]], ids=str)
def test_float32_and_tiles_of_true_size(lengths, monkeypatch):
    monkeypatch.setattr(relative_tiles, "KEPT_WEIGHTS", 0)
    tensors, lengths = inputs(lengths, depth=8, dtype=torch.float32)
    compare(tensors, lengths, tolerance=2e-5)


def test_padding_beyond_the_longest_item(cut):
    tensors, lengths = inputs([6, 4], frames=11)
    compare(tensors, lengths)


def test_padding_takes_no_part(cut):
    tensors, lengths = inputs([12, 0, 5])
    before = relative_attention(*tensors, lengths=lengths)
    gradients = torch.autograd.grad(before.sum(), tensors)
    for g in gradients[:3]:
        assert g[1].abs().max() == 0 and g[2, 5:].abs().max() == 0
    with torch.no_grad():
        for x in tensors[:3]:
            x[1], x[2, 5:] = 1e3, -1e3
    assert torch.allclose(relative_attention(*tensors, lengths=lengths), before, atol=1e-12)
    assert before[1].abs().max() == 0 and before[2, 5:].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_extreme_scores(dtype, cut):
    """Score around +-1e4: all the weight on one key, and a finite gradient."""
    tensors, lengths = inputs([12, 0, 7], dtype=dtype, size=70.0)
    with torch.no_grad():
        tensors[2] /= 70
    q, k = tensors[:2]
    assert torch.einsum("bihd,bjhd->bhij", q, k).abs().max() / 2 > 1e4
    compare(tensors, lengths, tolerance=1e-2 if dtype == torch.float32 else 1e-8)


def test_gradcheck(cut):
    tensors, lengths = inputs([6, 0, 3], heads=2, depth=2)
    for chunks in (None, Chunks(2, 1)):
        assert torch.autograd.gradcheck(
            lambda *x, chunks=chunks: module.tiled(*x, lengths=lengths, chunks=chunks),
            tensors,
            fast_mode=True,
        )


def test_weights_are_saved_where_checkpointing_finds_them():
    """And a graph that is kept gives the same gradients again."""
    tensors, lengths = inputs([9, 4])
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        y = module.tiled(*tensors, lengths=lengths)
    assert max(x.numel() for x in saved) >= 2 * 2 * 9 * 9
    first = torch.autograd.grad(y.sum(), tensors, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(y.sum(), tensors), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant):
    tensors, lengths = inputs([9, 4])
    gradients = []
    for run in (lambda f, *x: f(*x), partial(checkpoint, use_reentrant=reentrant)):
        torch.manual_seed(3)
        y = run(lambda *x: module.tiled(*x, lengths=lengths, dropout=0.3), *tensors)
        for x in tensors:
            x.grad = None
        y.square().sum().backward()
        gradients.append([x.grad for x in tensors])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_one_input_alone(name):
    tensors, lengths = inputs([9, 0, 4])
    for x, other in zip(tensors, NAMES, strict=True):
        x.requires_grad_(other == name)
    x = tensors[NAMES.index(name)]
    expected, found = (
        torch.autograd.grad(f(*tensors, lengths=lengths).square().sum(), x)[0]
        for f in (reference, module.tiled)
    )
    assert torch.allclose(found, expected, atol=1e-10)


def test_dropout_is_the_same_backwards(cut):
    """Finite differences of the function with one seed."""
    tensors, lengths = inputs([7, 0, 4], heads=2, depth=2)

    def seeded(*x):
        torch.manual_seed(3)
        return module.tiled(*x, lengths=lengths, dropout=0.4)

    with torch.no_grad():
        seeded_output, plain = seeded(*tensors), module.tiled(*tensors, lengths=lengths)
    assert (seeded_output - plain).abs().max() > 0.1
    assert torch.autograd.gradcheck(seeded, tensors, fast_mode=True)


@pytest.mark.parametrize("frames", [40, 150])
def test_dropout_rate(frames):
    """Values that are unit vectors show the weights."""
    (q, k, _, p, u, w), lengths = inputs([frames], heads=2, depth=frames, dtype=torch.float32)
    v = torch.eye(frames)[None, :, None].expand(1, frames, 2, frames)
    kept = module.tiled(q, k, v, p, u, w, lengths=lengths)
    torch.manual_seed(1)
    dropped = module.tiled(q, k, v, p, u, w, lengths=lengths, dropout=0.25)
    gone = dropped == 0
    assert gone.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.allclose(dropped[~gone], kept[~gone] / 0.75, atol=1e-6)
    torch.manual_seed(1)
    assert torch.equal(dropped, module.tiled(q, k, v, p, u, w, lengths=lengths, dropout=0.25))
    assert not torch.equal(dropped, module.tiled(q, k, v, p, u, w, lengths=lengths, dropout=0.25))
    rows = gone.float().mean(-1)
    assert rows.std() > 0.01  # no row is a copy of the one before
    assert not torch.equal(gone[:, 0], gone[:, 1])


def test_everything_dropped():
    tensors, lengths = inputs([5])
    y = relative_attention(*tensors, lengths=lengths, dropout=1.0)
    assert y.abs().max() == 0
    y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, cut):
    tensors, lengths = inputs([20, 0, 13], depth=8, dtype=torch.float32)
    exact = relative_attention(*tensors, lengths=lengths)
    weight = torch.randn_like(exact)
    expected = torch.autograd.grad((exact * weight).sum(), tensors)
    with torch.autocast("cpu", dtype=dtype):
        y = relative_attention(*tensors, lengths=lengths)
        gradients = torch.autograd.grad((y.float() * weight).sum(), tensors)
    assert y.dtype == dtype
    assert (y.float() - exact).abs().max() < 0.05
    for name, a, b in zip(NAMES, gradients, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() < 0.03 * b.abs().max(), name


def test_autocast_leaves_float64(cut):
    tensors, lengths = inputs([4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative_attention(*tensors, lengths=lengths).dtype == torch.double


class Sizes(TorchDispatchMode):
    """Elements of the largest tensor that an operation gives, and of all that `bmm`s give."""

    def __init__(self):
        super().__init__()
        self.largest = self.products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
                if "bmm" in name:
                    self.products += x.numel()
        return result


def sizes(compute, frames, chunks=None, dropout=0.0, backwards=True):
    tensors, lengths = inputs([frames, frames // 2], depth=2, dtype=torch.float32)
    with Sizes() as seen:
        y = compute(*tensors, lengths=lengths, chunks=chunks, dropout=dropout)
        if backwards:
            y.sum().backward()
    return seen


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_no_tensor_of_all_scores(dropout):
    frames = 1100
    assert sizes(module.tiled, frames, dropout=dropout).largest < frames * frames / 2
    assert sizes(reference, 100).largest >= 2 * 2 * 100 * 199  # the probe sees backward too


def test_memory_grows_with_the_length_not_its_square(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_SCORES", 1)  # the smallest tiles from the start
    largest = [sizes(module.tiled, n).largest for n in (800, 1600)]
    assert largest[1] < 2.1 * largest[0]


@pytest.mark.parametrize("backwards", [False, True])
def test_work_with_chunks_grows_with_the_length(backwards, monkeypatch):
    monkeypatch.setattr(relative_tiles, "KEPT_WEIGHTS", 0)
    work = [sizes(module.tiled, n, Chunks(16, 32), 0, backwards).products for n in (600, 1200)]
    assert work[1] < 2.2 * work[0]
    assert work[1] < sizes(module.tiled, 1200, None, 0, backwards).products / 3


def test_environment_forces_a_backend(monkeypatch):
    tensors, lengths = inputs([4])
    monkeypatch.setattr(module, "tiled", None)
    with pytest.raises(TypeError):
        relative_attention(*tensors, lengths=lengths)
    monkeypatch.setenv("SPEECHATTN_KERNELS", "reference")
    relative_attention(*tensors, lengths=lengths)


def test_wrong_number_of_distances():
    (q, k, v, p, u, w), lengths = inputs([4])
    with pytest.raises(ValueError, match="2T-1"):
        relative_attention(q, k, v, p[:-1], u, w, lengths=lengths)


@pytest.mark.parametrize("queries", [1, 3, 6])
def test_step_equals_last_rows(queries):
    (q, k, v, p, u, w), lengths = inputs([6, 6])
    whole = reference(q, k, v, p, u, w, lengths=lengths)
    part = relative_attention_step(q[:, -queries:], k, v, p[: 5 + queries], u, w)
    assert torch.allclose(part, whole[:, -queries:], atol=1e-12)
    part.sum().backward()
    assert k.grad.abs().max() > 0
