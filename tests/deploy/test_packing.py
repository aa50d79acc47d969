"""Packed layers compute what the layers they replace do."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from speechattn.decoders import TransformerDecoder
from speechattn.decoding import JointSearch
from speechattn.deploy.packing import PACKS, PackedLinear, pack
from speechattn.encoders import ConformerEncoder, EBranchformerEncoder
from speechattn.model.output import ModelOutput

pytestmark = pytest.mark.skipif(not PACKS, reason="this torch was built without oneDNN")


@pytest.mark.parametrize("shape", [(1, 70), (3, 70), (2, 5, 70), (0, 70), (2, 0, 70)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu", "swish"])
def test_a_layer(shape, bias, activation):
    torch.manual_seed(0)
    linear, x = nn.Linear(70, 90, bias), torch.randn(shape)
    function = {"none": nn.Identity(), "relu": functional.relu, "swish": functional.silu}
    with torch.no_grad():
        expected = function[activation](linear(x))
        found = PackedLinear(linear, activation)(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # Rows that are not adjacent in memory.
    if x.dim() == 3 and x.numel():
        turned = x.transpose(0, 1)
        with torch.no_grad():
            found = PackedLinear(linear, activation)(turned)
        torch.testing.assert_close(found, expected.transpose(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [ConformerEncoder, EBranchformerEncoder])
@torch.inference_mode()
def test_encoders(kind):
    torch.manual_seed(0)
    encoder = kind(80, 64, 4, linear_units=128, num_blocks=2).eval()
    packed = pack(copy.deepcopy(encoder))
    layers = [type(m) for m in packed.modules()]
    assert layers.count(PackedLinear) > 10 and not packed.training
    x, lengths = torch.randn(3, 120, 80), torch.tensor([120, 61, 90])
    expected, n = encoder(x, lengths)
    found, _ = packed(x, lengths)
    for a, b, frames in zip(found, expected, n, strict=True):
        torch.testing.assert_close(a[:frames], b[:frames], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_search():
    torch.manual_seed(0)
    decoder = TransformerDecoder(120, 64, 64, 4, linear_units=128, num_blocks=2).eval()
    hidden, lengths = torch.randn(2, 20, 64), torch.tensor([20, 13])
    log_probs = (3 * torch.randn(2, 20, 120)).log_softmax(-1)
    packed = pack(copy.deepcopy(decoder))
    assert any(isinstance(m, PackedLinear) for m in packed.modules())
    options = JointSearch(beam_size=5, nbest=3)
    for a, b in zip(
        *(options.search([ModelOutput(hidden, lengths, log_probs, d)]) for d in (decoder, packed)),
        strict=True,
    ):
        assert [h.tokens for h in a] == [h.tokens for h in b]
        assert [h.score for h in a] == pytest.approx([h.score for h in b], abs=1e-4)


@pytest.mark.parametrize("activation", ["swish", "relu", "tanh"])
@torch.inference_mode()
def test_copies(activation):
    torch.manual_seed(0)
    encoder = ConformerEncoder(
        80, 64, 4, linear_units=128, num_blocks=1, activation=activation
    ).eval()
    x, lengths = torch.randn(2, 60, 80), torch.tensor([60, 41])
    packed = pack(encoder)
    for again in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(again(x, lengths)[0], packed(x, lengths)[0])


def test_what_is_left_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(80, 80).double(), nn.Linear(80, 80))
    first, second, _ = model
    pack(model)
    assert model[0] is first and model[1] is second and isinstance(model[2], PackedLinear)
