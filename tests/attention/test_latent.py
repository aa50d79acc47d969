"""LatentTokenAttention against its definition, written token by token."""

import math

import pytest
import torch
from torch.testing import assert_close

from speechattn.attention import LatentTokenAttention, SoftmaxTokenAttention
from speechattn.attention.latent import turn
from speechattn.attention.rotary import rotate
from speechattn.attention.sinusoids import sinusoids
from speechattn.decoders.tree import TokenTree

D, H, RANK = 16, 2, 12
STRIDES = pytest.mark.parametrize("stride", [1, 2, 3, 5, 20])
ROTARY = pytest.mark.parametrize("rotary", [0, 4])


def make(stride: int, rotary: int = 0, **options) -> LatentTokenAttention:
    torch.manual_seed(stride)
    module = LatentTokenAttention(D, H, rank=RANK, stride=stride, rotary=rotary, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double().eval()


def make_tokens(n: int = 2, u: int = 11) -> torch.Tensor:
    return torch.randn(n, u, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def defined(module: LatentTokenAttention, x: torch.Tensor) -> torch.Tensor:
    """One sequence (U, D): equations of the paper, a token and a head at a time."""
    s, dh = module.stride, D // H
    read = module.latent(x)
    latents = module.norm(read[:, :RANK])
    turned = read[:, RANK:]
    queries = module.query(x).view(len(x), H, -1)
    if module.rotary:
        turned = rotate(turned[None, :, None])[0, :, 0]
        queries = torch.cat([queries[..., :dh], rotate(queries[None, ..., dh:])[0]], -1)
    if s > 1:
        table = sinusoids(len(x), RANK).double()
        weights = [
            torch.sigmoid(module.merge_position(table[u // s]) @ module.merge_latent(latents[u]))
            for u in range(len(x))
        ]
        latents = torch.stack([w * c for w, c in zip(weights, latents, strict=True)])
    out = []
    for u in range(len(x)):
        groups = [range(g, min(g + s, u + 1)) for g in range(0, u + 1, s)]
        merged = torch.stack([latents[list(g)].sum(0) for g in groups])  # (ceil((u + 1) / s), r)
        last = turned[[g[-1] for g in groups]]
        heads = []
        for h in range(H):
            keys = torch.cat([merged @ module.key[h].T, last], 1)
            scores = keys @ queries[u, h] / math.sqrt(dh + module.rotary)
            heads.append(scores.softmax(0) @ (merged @ module.value[h].T))
        out.append(module.output(torch.cat(heads)))
    return torch.stack(out)


@STRIDES
@ROTARY
def test_parallel_pass_and_gradients_are_those_of_the_definition(stride, rotary):
    module, x = make(stride, rotary), make_tokens().requires_grad_()
    y, expected = module(x), torch.stack([defined(module, row) for row in x])
    assert_close(y, expected)
    wanted = [x, *module.parameters()]
    weight = torch.randn_like(y)
    ours = torch.autograd.grad(y, wanted, weight)
    theirs = torch.autograd.grad(expected, wanted, weight)
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


def test_stride_1_is_plain_latent_attention():
    """Keys and values are products of the latents: softmax attention over them, nothing merged."""
    module, x = make(1), make_tokens()
    assert not any("merge" in name for name in module.state_dict())
    latents = module.norm(module.latent(x))
    q = module.query(x).view(2, 11, H, D // H).transpose(1, 2)
    k, v = (torch.einsum("bur,hdr->bhud", latents, up) for up in (module.key, module.value))
    scores = q @ k.mT / math.sqrt(D // H)
    scores = scores.masked_fill(torch.ones(11, 11, dtype=torch.bool).triu(1), -math.inf)
    y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    assert_close(module(x), module.output(y))


@STRIDES
@ROTARY
def test_steps_equal_the_parallel_pass_and_the_cache_is_short(stride, rotary):
    module, x = make(stride, rotary), make_tokens(u=23)
    expected = module(x)
    tree = TokenTree.root((module.empty(2, x),), module.stride)
    for u in range(23):
        growth = tree.growth()
        y, past = module.step(x[:, u : u + 1], tree.cache[0], growth)
        assert_close(y, expected[:, u : u + 1])
        tree, _ = tree.grown((past,), growth).select(torch.arange(2))
        places = math.ceil((u + 1) / stride)
        assert tree.path.sum(2).unique().tolist() == [places]
        # What is superseded is dropped once it is a quarter.
        assert places <= tree.cache[0][0].size(1) <= max(places, places / 0.75)
    assert tree.cache[0][0].shape[2:] == (RANK + rotary,)


def test_the_cache_beside_that_of_heads():
    """Numbers a token and layer: 4 Dh / s against 2 H Dh."""
    latent = LatentTokenAttention(64, 4, stride=2)
    heads = SoftmaxTokenAttention(64, 4)
    one = latent.empty(1, torch.zeros(()))[0].size(2) / latent.stride
    assert one == 2 * 16
    assert sum(x.shape[2:].numel() for x in heads.empty(1, torch.zeros(()))) == 4 * one


@STRIDES
def test_no_look_ahead(stride):
    module, x = make(stride, 4), make_tokens()
    before = module(x)
    for u in (1, 4, 10):
        changed = x.clone()
        changed[:, u:] += 1.0
        after = module(changed)
        assert_close(after[:, :u], before[:, :u])
        assert (after[:, u:] - before[:, u:]).abs().amax(-1).min() > 1e-3


@STRIDES
def test_a_tree_is_its_sequences(stride):
    module, x = make(stride, 4), make_tokens(3, 8)
    x[1, :5], x[2, :2] = x[0, :5], x[0, :2]  # what they begin with
    nodes, parents = list(x[0]), [-1, 0, 1, 2, 3, 4, 5, 6]
    ends = {0: list(range(8))}
    for row, shared in ((1, 5), (2, 2)):
        chain = ends[0][:shared]
        for u in range(shared, 8):
            parents.append(chain[-1])
            chain = [*chain, len(nodes)]
            nodes.append(x[row, u])
        ends[row] = chain
    depth, path = [], torch.eye(len(nodes), dtype=torch.bool)
    for i, parent in enumerate(parents):
        depth.append(0 if parent < 0 else depth[parent] + 1)
        if parent >= 0:
            path[i] |= path[parent]
    y = module.tree(torch.stack(nodes)[None], path[None], torch.tensor(depth)[None])[0]
    expected = module(x)
    for row, chain in ends.items():
        assert_close(y[chain], expected[row])


def test_turn_is_rotate_at_any_place():
    x = torch.randn(2, 7, 3, 8)
    assert_close(turn(x, torch.arange(7)[:, None]), rotate(x))
    order = torch.randperm(7)
    assert_close(turn(x[:, order], order[:, None]), rotate(x)[:, order])


def test_half_precision_and_dropout():
    module = make(2, 4).float()
    x = make_tokens().float()
    assert_close(module.bfloat16()(x.bfloat16()).float(), make(2, 4).float()(x), atol=0.1, rtol=0.1)
    module = make(2, dropout=0.5).train()
    assert not torch.equal(module(make_tokens()), module(make_tokens()))


@pytest.mark.parametrize(
    "options, message",
    [({"rank": 7}, "even"), ({"rotary": 3}, "even"), ({"stride": 0}, "stride is at least 1")],
)
def test_options_that_do_not_go(options, message):
    with pytest.raises(ValueError, match=message):
        LatentTokenAttention(D, H, **options)
