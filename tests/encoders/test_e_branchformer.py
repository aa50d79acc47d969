from functools import partial

import pytest
import torch

from speechattn.attention import RelativeSelfAttention
from speechattn.attention.positions import relative_positions
from speechattn.encoders.e_branchformer import EBranchformerBlock, EBranchformerEncoder

LENGTHS = [11, 4, 1, 8]
attention = partial(RelativeSelfAttention, 8, 2, 0.0)


@pytest.mark.parametrize("units", [16, 0])
@pytest.mark.parametrize("macaron", [True, False])
def test_batch_gives_what_items_give(macaron, units):
    torch.manual_seed(0)
    module = EBranchformerBlock(
        8, attention, units=units, cgmlp_units=12, cgmlp_kernel=5, merge_kernel=3, macaron=macaron
    ).eval()
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    x = torch.randn(4, 13, 8) * 3
    y = module(x, torch.tensor(LENGTHS), relative_positions(13, 8))
    for b, n in enumerate(LENGTHS):
        alone = module(x[b : b + 1, :n], torch.tensor([n]), relative_positions(n, 8))
        assert torch.allclose(y[b, :n], alone[0], atol=1e-5)


def test_options_reach_the_blocks():
    encoder = EBranchformerEncoder(
        10,
        8,
        attention_heads=2,
        linear_units=12,
        cgmlp_units=20,
        num_blocks=3,
        subsampling="linear",
        dropout=0.2,
        attention_dropout=0.3,
        cgmlp_kernel=7,
        merge_kernel=5,
        macaron=False,
    )
    assert len(encoder.blocks) == 3
    for block in encoder.blocks:
        assert block.macaron is None and block.ff_scale == 1
        assert block.attention.heads == 2
        assert block.feed_forward.expand.out_features == 12
        assert block.cgmlp.expand.out_features == 20
        assert block.cgmlp.depthwise.kernel_size == (7,)
        assert block.merge_depthwise.kernel_size == (5,)
        assert (block.dropout.p, block.cgmlp.dropout.p) == (0.2, 0.2)
        assert block.attention.dropout.p == 0.3
