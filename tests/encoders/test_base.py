"""What holds for every encoder."""

import pickle
from copy import deepcopy

import pytest
import torch

from speechattn.attention import SoftmaxSelfAttention
from speechattn.encoders import BranchformerEncoder, ConformerEncoder, EBranchformerEncoder
from speechattn.masks import padding_mask

LENGTHS = [70, 31, 52, 17]
SUBSAMPLINGS = ["none", "linear", "conv2d2", "conv2d4", "conv2d6", "conv2d8"]
ENCODERS = [ConformerEncoder, EBranchformerEncoder, BranchformerEncoder]
# Options that change how frames see each other, or what is computed of them.
VARIANTS = [
    (ConformerEncoder, {"attention": SoftmaxSelfAttention}),
    (EBranchformerEncoder, {"attention": SoftmaxSelfAttention}),
    (ConformerEncoder, {"chunk_size": 4, "left_context": 3}),
    (ConformerEncoder, {"attention": SoftmaxSelfAttention, "chunk_size": 5, "causal": True}),
    (EBranchformerEncoder, {"chunk_size": 1, "gate_linear": True, "gate_activation": "tanh"}),
    (BranchformerEncoder, {"merge_method": "learned_ave"}),
    (BranchformerEncoder, {"merge_method": "learned_ave", "chunk_size": 4, "left_context": 6}),
    (BranchformerEncoder, {"merge_method": "fixed_ave", "cgmlp_weight": [1.0, 0.3]}),
]
variants = pytest.mark.parametrize(
    ("cls", "options"), VARIANTS, ids=lambda v: "-".join(v) if isinstance(v, dict) else v.__name__
)


def build(cls, subsampling="linear", dropout=0.1, **options):
    torch.manual_seed(0)
    if cls is not ConformerEncoder:
        options["cgmlp_units"] = 40
    if cls is not BranchformerEncoder:
        options["linear_units"] = 36
    features = 24 if subsampling == "none" else 20
    encoder = cls(
        features,
        24,
        attention_heads=4,
        subsampling=subsampling,
        dropout=dropout,
        **{"num_blocks": 2, **options},
    )
    for name, value in encoder.state_dict().items():  # nothing at its neutral initial value
        if value.dim() == 1 or "depthwise" in name:
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else value + 0.3)
    return encoder, features


def batch(features, lengths=LENGTHS, extra=0, fill=0.0):
    torch.manual_seed(1)
    x = torch.randn(len(lengths), max(lengths), features)
    x = torch.nn.functional.pad(x, (0, 0, 0, extra))
    lengths = torch.tensor(lengths)
    return x.masked_fill(~padding_mask(lengths, x.shape[1])[..., None], fill), lengths


@pytest.mark.parametrize("fill", [0.0, 1e3, float("nan")], ids=["zeros", "large", "nan"])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("cls", ENCODERS)
def test_batch_gives_what_items_give(cls, subsampling, fill):
    check_batch_gives_what_items_give(*build(cls, subsampling), fill)


@variants
def test_batch_gives_what_items_give_in_every_variant(cls, options):
    check_batch_gives_what_items_give(*build(cls, "conv2d2", **options), float("nan"))


def check_batch_gives_what_items_give(encoder, features, fill):
    encoder.eval()
    x, lengths = batch(features, extra=3, fill=fill)
    y, y_lengths = encoder(x, lengths)
    for b, n in enumerate(LENGTHS):
        alone, alone_length = encoder(x[b : b + 1, :n], lengths[b : b + 1])
        m = y_lengths[b].item()
        assert alone_length.item() == m == alone.shape[1]
        assert torch.allclose(y[b, :m], alone[0], atol=1e-5)
        assert not y[b, m:].any()


@pytest.mark.parametrize("cls", ENCODERS)
def test_training_does_not_see_padding(cls):
    """Outputs, gradients and running statistics of a training step, dropout off."""
    check_training_does_not_see_padding(cls, {})


@variants
def test_training_does_not_see_padding_in_any_variant(cls, options):
    check_training_does_not_see_padding(cls, options)


def check_training_does_not_see_padding(cls, options):
    results = []
    for extra, fill in ((0, 0.0), (13, 1e3)):
        encoder, features = build(cls, dropout=0.0, **options)
        x, lengths = batch(features, extra=extra, fill=fill)
        x.requires_grad_()
        y, _ = encoder(x, lengths)
        real = padding_mask(lengths, 70)[..., None]
        y = y[:, :70] * real
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        grads = [p.grad for p in encoder.parameters()]
        assert all(g is not None for g in grads)
        results.append((y.detach(), x.grad[:, :70] * real, *grads, *encoder.buffers()))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_training_batch_gives_what_items_give():
    """No batch statistics in an E-Branchformer."""
    encoder, features = build(EBranchformerEncoder, dropout=0.0)
    x, lengths = batch(features)
    y, _ = encoder(x, lengths)
    for b, n in enumerate(LENGTHS):
        alone, _ = encoder(x[b : b + 1, :n], lengths[b : b + 1])
        assert torch.allclose(y[b, :n], alone[0], atol=1e-5)


@pytest.mark.parametrize("cls", ENCODERS)
def test_gradient_equals_finite_differences(cls):
    """For every tensor on its own."""
    check_gradient(*build(cls, "conv2d4", dropout=0.0, num_blocks=1), together=False)


@variants
def test_gradient_equals_finite_differences_in_every_variant(cls, options):
    """In a random direction of all parameters together."""
    check_gradient(*build(cls, dropout=0.0, **options), together=True)


def check_gradient(encoder, features, together):
    encoder.double()
    x, lengths = batch(features, [23, 15])
    x = x.double().requires_grad_()
    y, _ = encoder(x, lengths)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    tensors = [x, *encoder.parameters()]
    for group in [tensors] if together else [[tensor] for tensor in tensors]:
        directions = [torch.randn_like(tensor) for tensor in group]
        values = []
        for step in (1e-7, -1e-7):  # small, or a ReLU changes its mind
            with torch.no_grad():
                for tensor, direction in zip(group, directions, strict=True):
                    tensor += step * direction
                values.append((encoder(x, lengths)[0] * weight).sum())
                for tensor, direction in zip(group, directions, strict=True):
                    tensor -= step * direction
        slope = (values[0] - values[1]) / 2e-7
        expected = sum((t.grad * d).sum() for t, d in zip(group, directions, strict=True))
        assert torch.allclose(expected, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("cls", ENCODERS)
def test_short_and_empty_items(cls, subsampling):
    encoder, features = build(cls, subsampling)
    x, lengths = batch(features, [2, 0])
    for mode in (True, False):
        y, y_lengths = encoder.train(mode)(x, lengths)
        y.sum().backward()
        assert torch.isfinite(y).all() and y.shape[1] >= 1
        assert y_lengths.tolist() == ([2, 0] if encoder.subsampling_factor == 1 else [0, 0])
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize("attention", [None, SoftmaxSelfAttention])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("cls", ENCODERS)
def test_no_frames_at_all(cls, subsampling, attention):
    encoder, features = build(cls, subsampling, attention=attention)
    for mode in (True, False):
        y, lengths = encoder.train(mode)(torch.randn(2, 0, features), torch.tensor([0, 0]))
        assert y.shape == (2, 1, 24) and not y.any() and lengths.tolist() == [0, 0]


@pytest.mark.parametrize("cls", ENCODERS)
def test_inference_mode_copies_and_then_training(cls):
    encoder, features = build(cls)
    x, lengths = batch(features)
    with torch.inference_mode():
        expected, _ = encoder.eval()(x, lengths)
    for other in (encoder, deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        torch.testing.assert_close(other(x, lengths)[0], expected)  # attention adds up otherwise
        other.train()(x, lengths)[0].sum().backward()
        assert all(p.grad is not None for p in other.parameters())


@pytest.mark.parametrize("cls", ENCODERS)
def test_layer_drop(cls):
    encoder, features = build(cls, dropout=0.0, layer_drop=1.0)
    x, lengths = batch(features)
    bare = encoder.norm(encoder.positions(encoder.input(x, lengths)[0])[0])
    real = padding_mask(lengths)[..., None]
    assert torch.allclose(encoder(x, lengths)[0], bare * real)
    encoder.eval()
    assert not torch.allclose(encoder(x, lengths)[0], bare * real, atol=0.1)


@pytest.mark.parametrize("cls", ENCODERS)
def test_attributes(cls):
    encoder, _ = build(cls, "conv2d6")
    assert (encoder.output_size, encoder.subsampling_factor) == (24, 6)


@pytest.mark.parametrize("cls", ENCODERS)
def test_bfloat16_autocast(cls):
    encoder, features = build(cls, dropout=0.0)
    x, lengths = batch(features)
    for mode in (True, False):
        encoder.train(mode)
        exact, _ = encoder(x, lengths)
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = encoder(x, lengths)
        y.sum().backward()
        assert (y.float() - exact).abs().max() < 0.2
        assert (y.float() - exact).abs().mean() < 0.02


@pytest.mark.parametrize("cls", ENCODERS)
def test_round_trip_through_state_dict(cls):
    encoder, features = build(cls)
    x, lengths = batch(features)
    encoder(x, lengths)  # running statistics move
    other = build(cls)[0]
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other.eval()(x, lengths)[0], encoder.eval()(x, lengths)[0])


@pytest.mark.parametrize(
    ("cls", "shape", "millions"),
    [
        (ConformerEncoder, (80, 96, 4, 4, "linear", {"linear_units": 384}), (0.9, 1.6)),
        (ConformerEncoder, (512, 768, 12, 12, "linear", {"linear_units": 3072}), (150, 250)),
        (
            EBranchformerEncoder,
            (80, 96, 4, 4, "linear", {"linear_units": 256, "cgmlp_units": 256}),
            (0.7, 1.5),
        ),
        (BranchformerEncoder, (80, 256, 4, 24, "conv2d4", {}), (30, 36)),
        (
            EBranchformerEncoder,
            (512, 768, 12, 12, "linear", {"linear_units": 3072, "cgmlp_units": 3072}),
            (180, 280),
        ),
    ],
)
def test_sizes(cls, shape, millions):
    *sizes, blocks, subsampling, options = shape
    options = {"num_blocks": blocks, "subsampling": subsampling, **options}
    with torch.device("meta"):
        count = sum(p.numel() for p in cls(*sizes, **options).parameters()) / 1e6
    assert millions[0] < count < millions[1]
