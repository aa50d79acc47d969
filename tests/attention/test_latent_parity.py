"""LatentTokenAttention against the module of the paper's authors, on the same weights."""

import pytest
import torch
from torch.testing import assert_close

from speechattn.attention import LatentTokenAttention
from speechattn.decoders.tree import TokenTree

theirs = pytest.importorskip("MTLA", reason="pip install mtla==0.2.0 to compare with the authors'")

D, H, DH, RANK, ROTARY, U = 32, 4, 8, 16, 6, 11


def make(stride: int):
    torch.manual_seed(stride)
    their = theirs.MultiheadTemporalLatentAttention(
        D,
        H,
        bias=True,
        kv_lora_rank=RANK,
        qk_nope_head_dim=DH,
        qk_rope_head_dim=ROTARY,
        v_head_dim=DH,
        down_rate=stride,
    ).eval()
    ours = LatentTokenAttention(D, H, rank=RANK, stride=stride, rotary=ROTARY).eval()
    # Channels of a rotary pair are neighbours there, and half of all apart here.
    order = torch.cat([torch.arange(0, ROTARY, 2), torch.arange(1, ROTARY, 2)])
    head = torch.cat([torch.arange(DH), DH + order])
    heads = torch.cat([head + h * (DH + ROTARY) for h in range(H)])
    latent = torch.cat([torch.arange(RANK), RANK + order])
    with torch.no_grad():
        for name, source, rows in (("query", their.wq, heads), ("latent", their.wkv_a, latent)):
            getattr(ours, name).weight.copy_(source.weight[rows])
            getattr(ours, name).bias.copy_(source.bias[rows])
        key, value = their.wkv_b.weight.view(H, 2 * DH, RANK).chunk(2, 1)  # its bias is not used
        ours.key.copy_(key)
        ours.value.copy_(value)
    ours.norm.load_state_dict(their.kv_norm.state_dict())
    ours.output.load_state_dict(their.wo.state_dict())
    ours.merge_position.load_state_dict(their.hypernet_down.fc_c.state_dict())
    ours.merge_latent.load_state_dict(their.hypernet_down.fc_p.state_dict())
    return ours, their


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_parallel_pass_gradients_steps_and_cache(stride):
    ours, their = make(stride)
    x = torch.randn(2, U, D, requires_grad=True)
    place = torch.arange(float(U)).expand(2, U)
    found, wanted = ours(x), their(x, x, x, position=place)
    assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(found)
    (found_grad,) = torch.autograd.grad(found, x, weight)
    (wanted_grad,) = torch.autograd.grad(wanted, x, weight)
    assert_close(found_grad, wanted_grad, atol=1e-5, rtol=1e-5)

    tree, memory = TokenTree.root((ours.empty(2, x),), stride), {}
    with torch.no_grad():
        for u in range(U):
            token, growth = x[:, u : u + 1], tree.growth()
            found, past = ours.step(token, tree.cache[0], growth)
            tree = tree.grown((past,), growth)
            wanted = their(
                token, token, token, position=place[:, u : u + 1], incremental_state=memory
            )
            assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    (state,) = memory.values()
    assert tree.path.sum(2).unique().item() == state["prev_kv_t"].size(1)
