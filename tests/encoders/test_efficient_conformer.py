"""Efficient Conformer: against plain torch modules, the published sizes, and padding."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from speechattn.attention.grouped import grouped_positions
from speechattn.config import read_yaml
from speechattn.encoders import Encoder
from speechattn.encoders.efficient_conformer import EfficientConformerEncoder
from speechattn.masks import Chunks, padding_mask
from speechattn.model.directory import build_model

CONF = Path(__file__).resolve().parents[2] / "conf"
LENGTHS = [50, 23, 38, 1]  # 25, 12, 19, 1 frames in the first stage: 12 is the only multiple of 3
VARIANTS = {
    "convolution": {"groups": (3, 2, 1)},
    "attention": {"groups": (1, 1, 3), "downsampling": "attention"},
    "three to one": {"groups": (2, 1, 1), "strides": (3, 1)},
    "features at the rate": {"groups": (2, 2, 2), "input_layers": 0},
    "two convolutions": {"groups": (2, 1, 1), "input_layers": 2, "strides": (1, 2)},
}


def build(dropout=0.0, **options):
    torch.manual_seed(0)
    encoder = EfficientConformerEncoder(
        11, (8, 8, 12), (2, 1, 2), attention_heads=2, conv_kernel=5, dropout=dropout, **options
    )
    for name, value in encoder.state_dict().items():  # nothing at its neutral initial value
        if value.dim() == 1 or "depthwise" in name:
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else value + 0.3)
    return encoder


def batch(lengths=LENGTHS, extra=0, fill=0.0):
    torch.manual_seed(1)
    x = torch.nn.functional.pad(torch.randn(len(lengths), max(lengths), 11), (0, 0, 0, extra))
    lengths = torch.tensor(lengths)
    return x.masked_fill(~padding_mask(lengths, x.shape[1])[..., None], fill), lengths


# ------------------------------------------------------------------ the definition, in plain torch


def batch_norm(norm, x):
    """x (B, C, ...) by torch, statistics of the batch in training."""
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    return functional.batch_norm(x, mean, var, norm.weight, norm.bias, norm.training)


def reference(encoder, x):
    """Items of one length; convolutions, norms and strides are torch's own.

    Attention is our module's: it has tests of its own.
    """
    y = x[:, None]  # (B, 1, T, F)
    for convolution, norm in zip(encoder.input.convolutions, encoder.input.norms, strict=True):
        y = functional.silu(batch_norm(norm, convolution(y)))
    y = encoder.input.projection(y.transpose(1, 2).flatten(2))
    for stage, group in zip(encoder.stages, encoder.groups, strict=True):
        positions = grouped_positions(*y.shape[1:], group).to(y.dtype)
        for block in stage:
            y = reference_block(block, y, positions)
    return y


def reference_block(block, y, positions):
    lengths = torch.full((len(y),), y.shape[1])
    y = y + block.macaron(block.macaron_norm(y)) / 2
    attended = block.attention(block.attention_norm(y), lengths, positions)
    y = y[:, :: block.attention_stride] + attended
    module = block.convolution
    local = module.expand(block.convolution_norm(y)).transpose(1, 2)
    weight = module.depthwise.weight
    local = functional.conv1d(
        functional.glu(local, dim=1),
        weight,
        module.depthwise.bias,
        stride=block.conv_stride,
        padding=weight.shape[-1] // 2,
        groups=len(weight),
    )
    local = functional.silu(batch_norm(module.norm, local)).transpose(1, 2)
    y = block.shortcut(y[:, :: block.conv_stride]) + module.contract(local)
    y = y + block.feed_forward(block.feed_forward_norm(y)) / 2
    return block.norm(y)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_equals_plain_torch(options, training):
    encoder = build(**options).double().train(training)
    x = torch.randn(3, 37, 11, dtype=torch.double)
    y, lengths = encoder(x, torch.tensor([37, 37, 37]))
    expected = reference(encoder, x)
    assert lengths.tolist() == [expected.shape[1]] * 3
    assert expected.std() > 0.5
    assert torch.allclose(y, expected, atol=1e-10)


def test_gradient_equals_finite_differences():
    encoder = build(**VARIANTS["convolution"]).double()
    x, lengths = batch([23, 14])
    x = x.double().requires_grad_()
    weight = torch.randn(2, 3, 12, dtype=torch.double)
    (encoder(x, lengths)[0] * weight).sum().backward()
    for tensor in (x, *encoder.parameters()):
        direction = torch.randn_like(tensor)
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                tensor += step * direction
                values.append((encoder(x, lengths)[0] * weight).sum())
                tensor -= step * direction
        slope = (values[0] - values[1]) / 2e-6
        assert torch.allclose((tensor.grad * direction).sum(), slope, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize("fill", [0.0, 1e3, float("nan")], ids=["zeros", "large", "nan"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_batch_gives_what_items_give(options, fill):
    encoder = build(**options).eval()
    x, lengths = batch(extra=4, fill=fill)
    y, y_lengths = encoder(x, lengths)
    for b, n in enumerate(LENGTHS):
        alone, alone_length = encoder(x[b : b + 1, :n], lengths[b : b + 1])
        m = y_lengths[b].item()
        assert alone_length.item() == m == alone.shape[1]
        assert torch.allclose(y[b, :m], alone[0], atol=1e-5)
        assert not y[b, m:].any()


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_training_does_not_see_padding(options):
    """Outputs, gradients and running statistics of a training step, dropout off."""
    results = []
    for extra, fill in ((0, 0.0), (13, 1e3)):
        encoder = build(**options).double()
        x, lengths = batch(extra=extra, fill=fill)
        x = x.double().requires_grad_()
        y, y_lengths = encoder(x, lengths)
        y = y[:, : int(y_lengths.max())]
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        grads = [p.grad for p in encoder.parameters()]
        x_grad = x.grad[:, :50] * padding_mask(lengths)[..., None]
        results.append((y.detach(), x_grad, *grads, *encoder.buffers()))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_short_and_empty_items():
    encoder = build()
    x, lengths = batch([2, 0])
    for mode in (True, False):
        y, y_lengths = encoder.train(mode)(x, lengths)
        y.sum().backward()
        assert torch.isfinite(y).all() and y_lengths.tolist() == [1, 0]
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


# ------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_lengths(options):
    """Every step rounds up, for every length from 1 to 50."""
    encoder = build(**options).eval()
    strides = [2] * options.get("input_layers", 1) + list(options.get("strides", (2, 2)))
    lengths = torch.arange(1, 51)
    y, y_lengths = encoder(torch.randn(50, 50, 11), lengths)
    for n, m in zip(lengths.tolist(), y_lengths.tolist(), strict=True):
        for stride in strides:
            n = -(-n // stride)
        assert n == m
    assert y.shape == (50, int(y_lengths.max()), 12)
    assert encoder.subsampling_factor == torch.tensor(strides).prod()


def test_is_an_encoder():
    encoder = build().eval()
    assert isinstance(encoder, Encoder)
    assert (encoder.input_size, encoder.output_size, encoder.subsampling_factor) == (11, 12, 8)
    x, lengths = batch()
    whole = encoder.encode(x, lengths)
    assert torch.equal(whole.hidden, encoder(x, lengths)[0]) and whole.intermediate == {}
    with pytest.raises(ValueError, match="whole sequences"):
        encoder.encode(x, lengths, chunks=Chunks(4))


def test_dropout_in_training_only():
    encoder = build(dropout=0.3)
    x, lengths = batch([20])
    encoder(x, lengths)
    assert not torch.allclose(encoder(x, lengths)[0], encoder(x, lengths)[0], atol=1e-2)
    encoder.eval()
    assert torch.equal(encoder(x, lengths)[0], encoder(x, lengths)[0])


@pytest.mark.parametrize("options", [{}, VARIANTS["attention"]], ids=["convolution", "attention"])
def test_bfloat16_autocast(options):
    encoder = build(**options)
    x, lengths = batch()
    for mode in (True, False):
        encoder.train(mode)
        exact, _ = encoder(x, lengths)
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = encoder(x, lengths)
        y.sum().backward()
        assert (y.float() - exact).abs().max() < 0.3
        assert (y.float() - exact).abs().mean() < 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": (3, 1)}, "a stage"),
        ({"strides": (2,)}, "a stage"),
        ({"downsampling": "attention"}, "no groups"),
        ({"groups": (0, 1, 1)}, "at least 1"),
        ({"strides": (2, 0)}, "at least 1"),
    ],
)
def test_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("widths", "blocks", "heads"), [((8, 8, 12), (2, 0, 2), 2), ((9, 12, 12), (1, 1, 1), 3)]
)
def test_refuses_empty_stages_and_odd_widths(widths, blocks, heads):
    with pytest.raises(ValueError, match="widths are even, and blocks"):
        EfficientConformerEncoder(11, widths, blocks, attention_heads=heads)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_no_frames_at_all(options):
    encoder = build(**options)
    for mode in (True, False):
        y, lengths = encoder.train(mode)(torch.randn(2, 0, 11), torch.tensor([0, 0]))
        assert y.shape == (2, 1, 12) and not y.any() and lengths.tolist() == [0, 0]


# ----------------------------------------------------------------------------- the published models

# The authors' README gives 13.2, 31.5 and 125.6 million for their three CTC configurations, whose
# units are 256: their totals, cut off after the first decimal (the first is 13,281,856). They count
# a bias in every position projection, which cannot change anything and is left out here.
PUBLISHED = [
    (13.2, (120, 168, 240), (5, 5, 5), 4),
    (31.5, (180, 256, 360), (5, 6, 5), 4),
    (125.6, (360, 512, 720), (5, 6, 5), 8),
]


@pytest.mark.parametrize(("millions", "widths", "blocks", "heads"), PUBLISHED)
def test_published_parameter_count(millions, widths, blocks, heads):
    with torch.device("meta"):
        encoder = EfficientConformerEncoder(80, widths, blocks, attention_heads=heads)
        head = torch.nn.Linear(widths[-1], 256)
    biases = sum(w * n for w, n in zip(widths, blocks, strict=True))
    total = biases + sum(p.numel() for m in (encoder, head) for p in m.parameters())
    assert total // 100_000 == round(millions * 10)


def test_config_of_the_13_m_model():
    config = read_yaml(CONF / "efficient_conformer_ctc_13m.yaml")
    model = build_model(config["model"], 256)
    assert isinstance(model.streams["audio"].encoder, EfficientConformerEncoder)
    assert model.num_parameters() == 13_281_856 - 5 * (120 + 168 + 240)
    audio = torch.randn(2, 16000)
    hidden, lengths = model.eval().encode(audio, torch.tensor([16000, 7200]))
    assert hidden.shape == (2, 13, 240)  # 98 frames of 10 ms to 49, 25, 13
    assert lengths.tolist() == [13, 6]


def test_learns():
    """Twenty steps of CTC on a toy: which of the features is high, in turn."""
    torch.manual_seed(0)
    encoder, head = build(), torch.nn.Linear(12, 4)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-2)
    tokens = torch.randint(1, 4, (8, 3))
    x = functional.one_hot(tokens, 11).float().repeat_interleave(16, dim=1)  # (8, 48, 11)
    lengths, losses = torch.full((8,), 48), []
    for _ in range(20):
        y, y_lengths = encoder(x + 0.1 * torch.randn_like(x), lengths)
        log_probs = head(y).log_softmax(-1).transpose(0, 1)
        loss = functional.ctc_loss(log_probs, tokens, y_lengths, torch.full((8,), 3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
