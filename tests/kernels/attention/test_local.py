"""Local attention against its definition, and the definition and its windows against loops."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speechattn.kernels.attention import local as kernel
from speechattn.kernels.attention import local_blocks
from speechattn.kernels.attention.exact import attention
from speechattn.kernels.attention.local import (
    attention_and_totals,
    local_attention,
    reference,
)
from speechattn.kernels.attention.window import AttentionWindow
from speechattn.kernels.backend import VARIABLE
from speechattn.masks import padding_mask

WINDOWS = [
    AttentionWindow(2, 2),
    AttentionWindow(3, 0),
    AttentionWindow(0, 4),
    AttentionWindow(0, 0),
    AttentionWindow.from_size(6, stride=6),
    AttentionWindow.from_size(7, stride=3),
    AttentionWindow(9, 9, stride=12),
    AttentionWindow(1, 2, dilation=4),
    AttentionWindow(50, 50),
    AttentionWindow(5, 4, stride=2, dilation=3).past(),
    AttentionWindow.from_size(8, stride=8).past(),
]
LENGTHS = [[14, 0, 9, 1, 23], [0, 0]]


def inputs(lengths, shared=1, dtype=torch.double, heads=4, depth=4):
    torch.manual_seed(0)
    batch, frames = len(lengths), max(*lengths, 1, 1)
    shapes = [(batch, frames, heads, depth)] + [(batch, frames, heads // shared, depth)] * 2
    return [torch.randn(s, dtype=dtype).requires_grad_() for s in shapes], torch.tensor(lengths)


@pytest.fixture(params=["one tile", "tiles", "rows", "unread"])
def cut(request, monkeypatch):
    """Blocks of 4 queries, a few blocks a tile; fewer queries a tile than a block has.

    And `unread`: without a look at the lengths, as on a GPU.
    """
    if request.param != "one tile":
        monkeypatch.setattr(local_blocks, "BLOCK", 4)
        monkeypatch.setattr(local_blocks, "TILE_SCORES", 20 if request.param == "rows" else 100)
    if request.param == "unread":
        for module in (local_blocks, kernel):
            monkeypatch.setattr(module, "skips_padding", lambda device: False)


def neighbours(window: AttentionWindow, i: int, frames: int) -> list[int]:
    """Frames that frame i sees, from the words of `AttentionWindow`."""
    mine = [j for j in range(frames) if j % window.dilation == i % window.dilation]
    own = mine.index(i)
    members = [
        n for n in range(own + 2 * window.stride) if n // window.stride == own // window.stride
    ]
    centre = members[0] + window.stride // 2
    seen = [j for n, j in enumerate(mine) if centre - window.left <= n <= centre + window.right]
    return [j for j in seen if not window.causal or j <= i]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows(window):
    i = torch.arange(30)
    seen = window.visible(i[:, None], i)
    for query in i.tolist():
        assert i[seen[query]].tolist() == neighbours(window, query, 30)
        assert seen[query, query]
        past = [j for j in neighbours(window.past(), query, 30)]
        assert past == [j for j in neighbours(window, query, 30) if j <= query]
        assert query - min(past) <= window.reach


@pytest.mark.parametrize(
    "window, query, seen",
    [
        (AttentionWindow.from_size(3), 5, [4, 5, 6]),
        (AttentionWindow.from_size(4), 5, [3, 4, 5, 6]),
        (AttentionWindow.from_size(3), 0, [0, 1]),  # not shifted inwards
        (AttentionWindow.from_size(3, dilation=2), 5, [3, 5, 7]),
        (AttentionWindow.from_size(4, stride=4), 6, [4, 5, 6, 7]),
        (AttentionWindow.from_size(4, stride=2), 4, [3, 4, 5, 6]),
        (AttentionWindow.from_size(4, stride=2), 5, [3, 4, 5, 6]),
        (AttentionWindow.from_size(5, stride=3), 3, [2, 3, 4, 5, 6]),
        (AttentionWindow.from_size(4, stride=4).past(), 6, [4, 5, 6]),
        (AttentionWindow.from_size((3, 1)), 5, [2, 3, 4, 5, 6]),
        (AttentionWindow.from_size((3, 1)).past(), 5, [2, 3, 4, 5]),
    ],
    ids=str,
)
def test_windows_by_hand(window, query, seen):
    j = torch.arange(9)
    assert j[window.visible(torch.tensor(query), j)].tolist() == seen


@pytest.mark.parametrize(
    "make",
    [
        lambda: AttentionWindow(-1, 2),
        lambda: AttentionWindow(1, 1, stride=0),
        lambda: AttentionWindow(1, 1, dilation=0),
        lambda: AttentionWindow.from_size(3, stride=4),
        lambda: AttentionWindow(5, 0, stride=3),
        lambda: AttentionWindow.from_size(0),
        lambda: AttentionWindow.from_size((1, 2, 3)),
    ],
)
def test_windows_that_cannot_be(make):
    with pytest.raises(ValueError, match="AttentionWindow"):
        make()


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize(
    "window",
    [AttentionWindow(2, 1), AttentionWindow.from_size(7, stride=3), AttentionWindow(1, 2, 1, 4)],
    ids=str,
)
def test_definition_by_item(window, sink):
    """Query by query over the keys it sees; neighbouring heads on the same keys."""
    (q, k, v), lengths = inputs([11, 4], shared=2)
    sink = torch.randn(4).double() if sink else None
    y, total = reference(q, k, v, lengths, window, sink=sink)
    for b, n in enumerate(lengths.tolist()):
        for i in range(n):
            seen = neighbours(window, i, n)
            for h in range(4):
                e = (k[b, seen, h // 2] @ q[b, i, h] / 2.0).exp()
                below = e.sum() + (0.0 if sink is None else sink[h].exp())
                torch.testing.assert_close(y[b, i, h], (e / below) @ v[b, seen, h // 2])
                torch.testing.assert_close(total[b, i, h], below.log())


def both(tensors, lengths, window, sink=None, dropout=0.0, monkeypatch=None):
    """Results and gradients of the definition and of the fast way."""
    wanted = [*tensors, *([] if sink is None else [sink])]
    found = []
    for backend in ("reference", "torch"):
        monkeypatch.setenv(VARIABLE, backend)
        y, total = attention_and_totals(
            *tensors, lengths, window=window, dropout=dropout, sink=sink
        )
        torch.manual_seed(1)
        weights = torch.randn(y.shape).to(y), torch.randn(total.shape).to(total)
        loss = (y * weights[0]).sum() + (total * weights[1]).sum()
        found.append([y, total, *torch.autograd.grad(loss, wanted)])
    return zip(*found, strict=True)


@pytest.mark.parametrize("shared, sink", [(1, False), (2, True), (4, False)])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_definition(lengths, window, shared, sink, cut, monkeypatch):
    tensors, lengths = inputs(lengths, shared)
    sink = torch.randn(4).double().requires_grad_() if sink else None
    for expected, found in both(tensors, lengths, window, sink, monkeypatch=monkeypatch):
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precision(dtype, tolerance, cut, monkeypatch):
    tensors, lengths = inputs([14, 0, 9, 1], shared=2, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    window = AttentionWindow.from_size(7, stride=3)
    expected = [row[0] for row in both(exact, lengths, window, monkeypatch=monkeypatch)]
    found = [row[1] for row in both(tensors, lengths, window, monkeypatch=monkeypatch)]
    assert found[0].dtype == dtype
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b.double(), a, atol=tolerance * a.abs().max().item(), rtol=0.0)


def test_extreme_scores(cut, monkeypatch):
    tensors, lengths = inputs([23, 5], dtype=torch.float32)
    with torch.no_grad():
        tensors[0] *= 1e4
    for expected, found in both(tensors, lengths, AttentionWindow(3, 3), monkeypatch=monkeypatch):
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shared", [1, 2])
def test_whole_window_is_softmax_attention(shared, cut):
    (q, k, v), lengths = inputs([14, 0, 9, 1], shared)
    for frames in (14, 1000):
        y = local_attention(q, k, v, lengths, window=AttentionWindow(frames, frames))
        torch.testing.assert_close(y, attention(q, k, v, lengths, query_lengths=lengths))


def test_very_low_sink_is_none(cut):
    (q, k, v), lengths = inputs([14, 3])
    window = AttentionWindow(3, 1)
    expected = local_attention(q, k, v, lengths, window=window)
    y = local_attention(q, k, v, lengths, window=window, sink=torch.full((4,), -100.0))
    torch.testing.assert_close(y, expected)
    assert (
        local_attention(q, k, v, lengths, window=window, sink=torch.full((4,), 100.0)).abs().max()
        < 1e-30
    )


@pytest.mark.parametrize("window", [w.past() for w in WINDOWS], ids=str)
@pytest.mark.parametrize("sizes", [[1] * 23, [5, 1, 17], [20, 3]], ids=str)
def test_steps_equal_the_whole(window, sizes):
    """Of what the next frame may see alone, which begins anywhere in a group."""
    (q, k, v), lengths = inputs([23, 23], shared=2)
    whole = local_attention(q, k, v, lengths, window=window)
    done, parts = 0, []
    for size in sizes:
        first = max(done - window.reach, 0)
        seen = slice(first, done + size)
        keys = torch.full((2,), done + size - first)
        parts.append(
            local_attention(
                q[:, done : done + size], k[:, seen], v[:, seen], keys, window=window, start=first
            )
        )
        done += size
    torch.testing.assert_close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_many_last_queries(window, monkeypatch):
    """A few at a time, which see to the right, too; items that end before the last key."""
    monkeypatch.setattr(kernel, "_STEP", 4)
    (q, k, v), lengths = inputs([23, 19, 6])
    whole = local_attention(q, k, v, lengths, window=window)
    torch.testing.assert_close(
        local_attention(q[:, 9:], k, v, lengths, window=window), whole[:, 9:]
    )


def test_dropout_is_the_same_backwards(cut):
    (q, k, v), lengths = inputs([9, 0, 4], shared=2, heads=2, depth=2)
    sink = torch.zeros(2).double().requires_grad_()

    def seeded(*x):
        torch.manual_seed(3)
        return attention_and_totals(
            *x[:3], lengths, window=AttentionWindow.from_size(5, stride=2), dropout=0.4, sink=x[3]
        )

    plain = attention_and_totals(
        q, k, v, lengths, window=AttentionWindow.from_size(5, stride=2), dropout=0.0, sink=sink
    )
    assert (seeded(q, k, v, sink)[0] - plain[0]).abs().max() > 0.1
    torch.testing.assert_close(seeded(q, k, v, sink)[1], plain[1])
    assert torch.autograd.gradcheck(seeded, (q, k, v, sink), fast_mode=True)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_dropout_rate(backend, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    frames = 60
    (q, k, _), lengths = inputs([frames], heads=2, depth=frames)
    v = torch.eye(frames, dtype=torch.double)[None, :, None].expand(1, frames, 2, frames)
    window = AttentionWindow(20, 20)
    y = local_attention(q, k, v, lengths, window=window, dropout=0.25)[0].transpose(
        0, 1
    )  # (H, i, j)
    i = torch.arange(frames)
    seen = window.visible(i[:, None], i)
    assert (y[:, seen] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    expected = local_attention(q, k, v, lengths, window=window)[0].transpose(0, 1)[:, seen]
    kept = y[:, seen] != 0
    torch.testing.assert_close(y[:, seen][kept], expected[kept] / 0.75, rtol=1e-4, atol=0.0)


def test_autocast():
    (q, k, v), lengths = inputs([14, 3], dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = local_attention(q, k, v, lengths, window=AttentionWindow(2, 2))
        y.sum().backward()
    assert y.dtype == torch.bfloat16 and q.grad.dtype == torch.float32


def test_padding_changes_nothing(cut):
    tensors, lengths = inputs([14, 0, 9])
    other = [
        x.detach().masked_fill(~padding_mask(lengths)[..., None, None], 1e4).requires_grad_()
        for x in tensors
    ]
    y = [local_attention(*x, lengths, window=AttentionWindow(3, 2)) for x in (tensors, other)]
    assert torch.equal(*y) and (y[0][~padding_mask(lengths)] == 0).all()
    for grad in torch.autograd.grad(y[1].square().sum(), other):
        assert (grad[~padding_mask(lengths)] == 0).all()


class Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return result


@pytest.mark.parametrize(
    "window, dropout",
    [
        (AttentionWindow.from_size(128), 0.1),
        (AttentionWindow.from_size(20, 20), 0.0),
        (AttentionWindow.from_size(64, dilation=8), 0.0),
        (AttentionWindow.from_size(1000, stride=1000), 0.0),
        (AttentionWindow(4000, 4000), 0.0),
    ],
    ids=str,
)
def test_no_tensor_of_all_scores(window, dropout):
    """Forwards and backwards, even of windows that are as large as the item."""
    frames = 1500
    tensors, lengths = inputs([frames, 300], heads=2, depth=2, dtype=torch.float32)
    with Largest() as seen:
        local_attention(*tensors, lengths, window=window, dropout=dropout).sum().backward()
    assert seen.numel < frames * frames / 4


def test_heads_that_do_not_go_together():
    (q, k, v), lengths = inputs([5])
    with pytest.raises(ValueError, match="3 heads of keys do not divide 4"):
        local_attention(q, k[:, :, :3], v[:, :, :3], lengths, window=AttentionWindow(1, 1))
