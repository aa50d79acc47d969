"""Softmax attention of decoders with shared heads, against heads that are copies of each other."""

import math

import pytest
import torch
from torch.testing import assert_close

from speechattn.attention import SoftmaxCrossAttention, SoftmaxTokenAttention
from speechattn.decoders.tree import TokenTree

D, MEMORY, H, T, U = 24, 10, 6, 7, 5
LENGTHS = torch.tensor([7, 3])
MASK = (torch.arange(T) < LENGTHS[:, None])[:, None, None]
KV = pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])


def repeated(x: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Rows of Hkv heads to those of H, neighbours alike."""
    return x.unflatten(0, (kv_heads, D // H)).repeat_interleave(H // kv_heads, 0).flatten(0, 1)


@KV
def test_token_attention_equals_that_of_repeated_heads(kv_heads):
    torch.manual_seed(0)
    module = SoftmaxTokenAttention(D, H, kv_heads=kv_heads).double()
    twin = SoftmaxTokenAttention(D, H).double()
    size = kv_heads * (D // H)
    with torch.no_grad():
        for ours, theirs in ((module.project.weight, twin.project.weight),
                             (module.project.bias, twin.project.bias)):  # fmt: skip
            q, k, v = ours.split([D, size, size])
            theirs.copy_(torch.cat([q, repeated(k, kv_heads), repeated(v, kv_heads)]))
        twin.output.load_state_dict(module.output.state_dict())
    x = torch.randn(3, U, D, dtype=torch.float64, requires_grad=True)
    y, expected = module(x), twin(x)
    assert_close(y, expected)
    for one, other in zip(
        *(torch.autograd.grad(z.square().sum(), x) for z in (y, expected)), strict=True
    ):
        assert_close(one, other)
    tree = TokenTree.root((module.empty(3, x),))
    for u in range(U):
        growth = tree.growth()
        now, past = module.step(x[:, u : u + 1], tree.cache[0], growth)
        tree = tree.grown((past,), growth)
        assert_close(now, y[:, u : u + 1])
        # Hypotheses of one utterance, twice as many
        tree, _ = tree.select(torch.arange(3))
    assert [c.shape for c in tree.cache[0]] == 2 * [(3, U, kv_heads, D // H)]
    path = torch.ones(U, U, dtype=torch.bool).tril().expand(3, U, U)
    assert_close(module.tree(x, path, torch.arange(U).expand(3, U)), y)


@KV
def test_cross_attention_equals_that_of_repeated_heads(kv_heads):
    torch.manual_seed(0)
    module = SoftmaxCrossAttention(D, MEMORY, H, kv_heads=kv_heads).double()
    memory = torch.randn(2, T, MEMORY, dtype=torch.float64)
    x = torch.randn(4, U, D, dtype=torch.float64)  # two sequences an utterance
    keys = module.keys(memory)
    assert [k.shape for k in keys] == 2 * [(2, kv_heads, T, D // H)]
    q = module.query(x).view(4, U, H, D // H).transpose(1, 2)
    k, v = (
        part.repeat_interleave(H // kv_heads, 1).repeat_interleave(2, 0)  # (N, H, T, Dh)
        for part in keys
    )
    scores = q @ k.mT / math.sqrt(D // H)
    scores = scores.masked_fill(~MASK.repeat_interleave(2, 0), -math.inf)
    weights = scores.softmax(-1)
    assert_close(module.weights(x, keys, MASK), weights)
    expected = module.output((weights @ v).transpose(1, 2).flatten(2))
    assert_close(module(x, keys, MASK), expected)
    # Two hypotheses of one token each
    y, heard = module.step(x[:, 0].view(2, 2, D), keys, MASK, module.start(keys))
    assert heard == ()
    assert_close(y.flatten(0, 1), expected[:, 0])


def test_heads_that_do_not_go():
    for kind, sizes in ((SoftmaxTokenAttention, (D, H)), (SoftmaxCrossAttention, (D, MEMORY, H))):
        for kv_heads in (4, -1):
            with pytest.raises(ValueError, match=f"{kind.__name__}: kv_heads"):
                kind(*sizes, kv_heads=kv_heads)
