"""Streams: chunk by chunk equals the whole sequence with the same chunks."""

import pytest
import torch

from speechattn.attention import SoftmaxSelfAttention
from speechattn.encoders import BranchformerEncoder, ConformerEncoder, EBranchformerEncoder
from speechattn.masks import Chunks

SHAPES = {
    ConformerEncoder: {"linear_units": 24, "conv_kernel": 7},
    EBranchformerEncoder: {
        "linear_units": 24,
        "cgmlp_units": 20,
        "cgmlp_kernel": 7,
        "merge_kernel": 5,
    },
    BranchformerEncoder: {"cgmlp_units": 20, "cgmlp_kernel": 7},
}
ENCODERS = pytest.mark.parametrize("cls", SHAPES)
ATTENTION = pytest.mark.parametrize("attention", [None, SoftmaxSelfAttention])
CHUNKS = pytest.mark.parametrize(
    "chunks",
    [Chunks(4), Chunks(4, 6), Chunks(3, 0), Chunks(1), Chunks(1, 2), Chunks(50, 5)],
    ids=lambda c: f"size{c.size}_left{c.left}",
)


def build(cls, subsampling="linear", **options):
    torch.manual_seed(0)
    width = 16
    encoder = cls(
        width if subsampling == "none" else 18,
        width,
        attention_heads=2,
        num_blocks=2,
        subsampling=subsampling,
        **{**SHAPES[cls], **options},
    ).eval()
    for name, value in encoder.state_dict().items():  # nothing at its neutral initial value
        if value.dim() == 1 or "depthwise" in name:
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else value + 0.3)
    return encoder


def stream(encoder, x, chunks, pieces, head=None):
    """Feed `x` in pieces of these sizes, in turn and over again."""
    state = encoder.init_state(len(x), chunks)
    outputs, start = [], 0
    while start < x.shape[1]:
        size = pieces[len(outputs) % len(pieces)]
        piece = x[:, start : start + size]
        start += size
        y, state = encoder.step(piece, state, head, last=start >= x.shape[1])
        outputs.append(y)
    return torch.cat(outputs, dim=1)


@torch.no_grad()
def check(encoder, chunks, frames=33, pieces=(9, 1, 13), head=None):
    x = torch.randn(2, frames, encoder.input_size)
    whole = encoder.encode(x, torch.full((2,), frames), head, chunks).hidden
    streamed = stream(encoder, x, chunks, pieces, head)
    assert whole.abs().max() > 0.5
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-5)


@CHUNKS
@ATTENTION
@ENCODERS
def test_stream_equals_whole(cls, attention, chunks):
    check(build(cls, attention=attention), chunks)


@pytest.mark.parametrize(
    "subsampling", ["none", "conv1d3", *(f"conv2d{n}" for n in (1, 2, 4, 6, 8))]
)
@ENCODERS
def test_subsampling(cls, subsampling):
    check(build(cls, subsampling), Chunks(3, 4), frames=101)


@pytest.mark.parametrize(
    ("method", "weight"), [("learned_ave", 0.5), ("fixed_ave", 0.0), ("fixed_ave", 1.0)]
)
@pytest.mark.parametrize("chunks", [Chunks(4), Chunks(3, 5), Chunks(2, 0)], ids=str)
def test_merge_methods(method, weight, chunks):
    check(build(BranchformerEncoder, merge_method=method, cgmlp_weight=[0.3, weight]), chunks)


@pytest.mark.parametrize("chunks", [Chunks(4, 6), Chunks(1)], ids=str)
@ENCODERS
def test_causal_convolutions(cls, chunks):
    check(build(cls, causal=True), chunks)


@ENCODERS
def test_self_conditioning(cls):
    head = torch.nn.Linear(16, 7)
    encoder = build(cls, intermediate=[1], self_conditioning=7)
    check(encoder, Chunks(4, 6), head=lambda h: head(h).log_softmax(-1))


def test_own_chunks():
    encoder = build(ConformerEncoder, chunk_size=5, left_context=3)
    x = torch.randn(1, 23, 18)
    whole, _ = encoder(x, torch.tensor([23]))
    torch.testing.assert_close(stream(encoder, x, None, [7]), whole, rtol=0, atol=1e-5)
    explicit = encoder.encode(x, torch.tensor([23]), chunks=Chunks(5, 3)).hidden
    assert torch.equal(whole, explicit)
    assert not torch.allclose(whole, build(ConformerEncoder)(x, torch.tensor([23]))[0], atol=1e-3)


@pytest.mark.parametrize("size", [1, 4, 30])
@pytest.mark.parametrize("causal", [False, True], ids=["chunk_conv", "causal_conv"])
@ENCODERS
def test_sees_nothing_right_of_the_chunk(cls, causal, size):
    encoder = build(cls, causal=causal)
    x = torch.randn(1, 14, 18, requires_grad=True)
    hidden = encoder.encode(x, torch.tensor([14]), chunks=Chunks(size)).hidden
    for i in range(14):
        (grad,) = torch.autograd.grad(hidden[0, i].square().sum(), x, retain_graph=True)
        seen = grad[0].abs().sum(-1) > 0  # (T,)
        end = min((i // size + 1) * size, 14)
        assert seen[:end].all() and not seen[end:].any()


def test_left_context_bounds_what_is_kept():
    encoder = build(EBranchformerEncoder)
    state = encoder.init_state(1, Chunks(4, 6))
    for _ in range(9):
        _, state = encoder.step(torch.randn(1, 4, 18), state)
        for attention, gate, merge in state.blocks:
            assert attention.key.shape[1] <= 6
            assert (gate.shape[1], merge.shape[1]) == (3, 2)


def test_a_state_can_be_used_twice():
    encoder = build(BranchformerEncoder, merge_method="learned_ave")
    x = torch.randn(1, 12, 18)
    _, state = encoder.step(x[:, :7], encoder.init_state(1, Chunks(3)))
    first, _ = encoder.step(x[:, 7:], state)
    again, _ = encoder.step(x[:, 7:], state)
    assert torch.equal(first, again)


def test_too_little_for_a_frame_gives_none():
    encoder = build(ConformerEncoder, "conv2d4")
    y, state = encoder.step(torch.randn(2, 5, 18), encoder.init_state(2, Chunks(2)))
    assert y.shape == (2, 0, 16)
    y, _ = encoder.step(torch.randn(2, 0, 18), state, last=True)
    assert y.shape == (2, 0, 16)


def test_refusals():
    encoder = build(ConformerEncoder)
    with pytest.raises(ValueError, match="chunk_size"):
        encoder.init_state(1)
    state = encoder.init_state(1, Chunks(2))
    with pytest.raises(RuntimeError, match=r"eval\(\)"):
        encoder.train().step(torch.randn(1, 4, 18), state)
