"""TransformerDecoder against ESPnet's on the same weights, forwards and backwards."""

import pytest
import torch
from torch.testing import assert_close

from speechattn.decoders import TransformerDecoder
from speechattn.importing.espnet import decoder_weights

espnet = pytest.importorskip(
    "espnet2.asr.decoder.transformer_decoder",
    reason="pip install espnet==202611 to compare with ESPnet",
)

V, D = 13, 16
TOKENS = torch.tensor([[12, 3, 4, 4, 9, 2], [12, 5, 6, 0, 0, 0], [12, 7, 1, 2, 0, 0]])
TOKEN_LENGTHS = torch.tensor([6, 3, 4])
MEMORY_LENGTHS = torch.tensor([5, 9, 1])


def make():
    torch.manual_seed(0)
    theirs = espnet.TransformerDecoder(V, D, attention_heads=4, linear_units=32, num_blocks=3)
    ours = TransformerDecoder(V, D, D, 4, linear_units=32, num_blocks=3)
    ours.load_state_dict(decoder_weights(theirs.state_dict()))
    return ours.eval(), theirs.eval()


def test_logits_and_gradients():
    ours, theirs = make()
    memory = torch.randn(3, 9, D, requires_grad=True)
    real = torch.arange(6) < TOKEN_LENGTHS[:, None]
    left = ours(TOKENS, TOKEN_LENGTHS, memory, MEMORY_LENGTHS)[real]
    right = theirs(memory, MEMORY_LENGTHS, TOKENS, TOKEN_LENGTHS)[0][real]
    assert_close(left, right, atol=1e-5, rtol=1e-5)

    weight = torch.randn_like(left)
    (wanted,) = torch.autograd.grad((right * weight).sum(), memory, retain_graph=True)
    (right * weight).sum().backward()
    memory.grad = None
    (left * weight).sum().backward()
    assert_close(memory.grad, wanted, atol=1e-5, rtol=1e-4)
    gradients = decoder_weights({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name], atol=2e-5, rtol=1e-4, msg=name)


def test_steps():
    ours, theirs = make()
    memory = torch.randn(2, 7, D)
    state = ours.init_state(memory, torch.tensor([7, 7]))
    states = [None, None]
    with torch.no_grad():
        for u in range(1, 5):
            left, state = ours.step(TOKENS[:2, u - 1], state)
            right, states = theirs.batch_score(TOKENS[:2, :u], states, memory)
            assert_close(left, right, atol=1e-5, rtol=1e-5)
