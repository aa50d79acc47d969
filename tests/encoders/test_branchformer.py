from functools import partial

import pytest
import torch

from speechattn.attention import RelativeSelfAttention
from speechattn.attention.positions import relative_positions
from speechattn.encoders.branchformer import (
    BranchformerBlock,
    BranchformerEncoder,
    LearnedAverage,
)
from speechattn.masks import Chunks

LENGTHS = [11, 4, 1, 8]


def block(**options):
    attention = partial(RelativeSelfAttention, 8, 2, 0.0)
    return BranchformerBlock(8, attention, cgmlp_units=12, cgmlp_kernel=5, **options)


@pytest.mark.parametrize("method", ["concat", "learned_ave", "fixed_ave"])
def test_batch_gives_what_items_give(method):
    torch.manual_seed(0)
    module = block(merge_method=method, cgmlp_weight=0.3).eval()
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    x = torch.randn(4, 13, 8) * 3
    y = module(x, torch.tensor(LENGTHS), relative_positions(13, 8))
    for b, n in enumerate(LENGTHS):
        alone = module(x[b : b + 1, :n], torch.tensor([n]), relative_positions(n, 8))
        assert torch.allclose(y[b, :n], alone[0], atol=1e-5)


def by_hand(module, both):
    """The branches side by side (T, 2D) to weights of both, from 2207.02971's equations."""
    weights = []
    for branch, score, weight in (
        (both[:, :6], module.attention_score, module.attention_weight),
        (both[:, 6:], module.cgmlp_score, module.cgmlp_weight),
    ):
        attention = (score(branch)[:, 0] / 6**0.5).softmax(0)  # (T,)
        weights.append(weight((attention[:, None] * branch).sum(0)))
    return torch.cat(weights).softmax(0)


@pytest.mark.parametrize(
    "chunks", [None, Chunks(3), Chunks(3, 2), Chunks(1, 0), Chunks(40)], ids=str
)
def test_learned_average_pools_what_a_chunk_sees(chunks):
    torch.manual_seed(0)
    module = LearnedAverage(6)
    both = torch.randn(4, 13, 12) * 2
    y = module(both, torch.tensor(LENGTHS), chunks)
    assert y.shape == (4, 13, 6)
    for b, n in enumerate(LENGTHS):
        for i in range(n):
            begin, end = 0, n
            if chunks is not None:
                start = i // chunks.size * chunks.size
                begin = 0 if chunks.left < 0 else max(start - chunks.left, 0)
                end = min(start + chunks.size, n)
            broad, local = by_hand(module, both[b, begin:end])
            expected = broad * both[b, i, :6] + local * both[b, i, 6:]
            assert torch.allclose(y[b, i], expected, atol=1e-5)


def test_learned_average_of_an_empty_item_is_finite():
    module = LearnedAverage(4)
    both = torch.randn(2, 5, 8, requires_grad=True)
    y = module(both, torch.tensor([5, 0]), Chunks(2, 1))
    y.sum().backward()
    assert y.isfinite().all() and both.grad.isfinite().all()


def test_dropped_attention_is_not_computed():
    module = block(dropout=0.0, merge_method="learned_ave", attention_drop=1.0)
    x = torch.randn(2, 6, 8)
    module(x, torch.tensor([6, 4]), relative_positions(6, 8)).sum().backward()
    assert module.attention.query.weight.grad is None
    assert module.cgmlp.expand.weight.grad is not None
    module.eval()(x, torch.tensor([6, 4]), relative_positions(6, 8)).sum().backward()
    assert module.attention.query.weight.grad is not None


def test_options_reach_the_blocks():
    encoder = BranchformerEncoder(
        10,
        8,
        attention_heads=2,
        cgmlp_units=20,
        num_blocks=3,
        subsampling="linear",
        dropout=0.2,
        attention_dropout=0.3,
        cgmlp_kernel=7,
        merge_method="learned_ave",
        attention_drop=[0.0, 0.1, 0.2],
        gate_linear=True,
        stochastic_depth=[0.0, 0.2, 0.4],
    )
    assert [b.attention_drop for b in encoder.blocks] == [0.0, 0.1, 0.2]
    assert [b.stochastic_depth for b in encoder.blocks] == [0.0, 0.2, 0.4]
    for block in encoder.blocks:
        assert block.attention.heads == 2
        assert block.cgmlp.expand.out_features == 20
        assert block.cgmlp.linear is not None
        assert block.cgmlp.depthwise.kernel_size == (7,)
        assert (block.dropout.p, block.cgmlp.dropout.p) == (0.2, 0.2)
        assert block.attention.dropout.p == 0.3
        assert block.merge.in_features == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_method": "sum"}, "concat"),
        ({"cgmlp_weight": 1.5}, "0 to 1"),
        ({"attention_drop": [0.1]}, "attention_drop: 1 entries for 12 layers"),
    ],
)
def test_errors_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        BranchformerEncoder(8, 8, **options)
