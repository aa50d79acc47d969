"""Our encoders against ESPnet 202611's, with the same random weights.

This pins the arithmetic that importing ESPnet checkpoints relies on. The mapping of names below is
the test's own.
"""

import re

import pytest
import torch

from speechattn.encoders import ConformerEncoder, EBranchformerEncoder
from speechattn.masks import padding_mask

_INSTALL = "needs ESPnet: pip install --no-deps --ignore-requires-python espnet==202611 typeguard"
conformer = pytest.importorskip(
    "espnet2.asr.encoder.conformer_encoder", reason=_INSTALL, exc_type=ImportError
)
e_branchformer = pytest.importorskip(
    "espnet2.asr.encoder.e_branchformer_encoder", reason=_INSTALL, exc_type=ImportError
)

FEATURES, WIDTH, HEADS, UNITS, BLOCKS = 23, 32, 4, 48, 2

# ESPnet's name to ours; every rule that matches is applied, in turn.
_RULES = [
    (r"^embed\.conv\.(\d+)\.", lambda m: f"input.convolutions.{int(m[1]) // 2}."),
    (r"^embed\.out\.", "input.projection."),
    (r"^embed\.0\.", "input.projection."),
    (r"^embed\.1\.", "input.norm."),
    (r"^after_norm\.", "norm."),
    (r"^encoders\.", "blocks."),
    (r"\.(self_attn|attn)\.", ".attention."),
    (r"\.attention\.linear_q\.", ".attention.query."),
    (r"\.attention\.linear_k\.", ".attention.key."),
    (r"\.attention\.linear_v\.", ".attention.value."),
    (r"\.attention\.linear_out\.", ".attention.output."),
    (r"\.attention\.linear_pos\.", ".attention.position."),
    (r"\.attention\.pos_bias_u$", ".attention.content_bias"),
    (r"\.attention\.pos_bias_v$", ".attention.position_bias"),
    (r"\.norm_ff_macaron\.", ".macaron_norm."),
    (r"\.feed_forward_macaron\.", ".macaron."),
    (r"\.norm_ff\.", ".feed_forward_norm."),
    (r"\.norm_mha\.", ".attention_norm."),
    (r"\.norm_conv\.", ".convolution_norm."),
    (r"\.norm_mlp\.", ".cgmlp_norm."),
    (r"\.norm_final\.", ".norm."),
    (r"\.w_1\.", ".expand."),
    (r"\.w_2\.", ".contract."),
    (r"\.conv_module\.", ".convolution."),
    (r"\.pointwise_conv1\.", ".expand."),
    (r"\.pointwise_conv2\.", ".contract."),
    (r"\.depthwise_conv\.", ".depthwise."),
    (r"\.channel_proj1\.0\.", ".expand."),
    (r"\.channel_proj2\.", ".contract."),
    (r"\.csgu\.norm\.", ".norm."),
    (r"\.csgu\.conv\.", ".depthwise."),
    (r"\.depthwise_conv_fusion\.", ".merge_depthwise."),
    (r"\.merge_proj\.", ".merge."),
]


def ours_of(name):
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def reshape(name, value):
    """A pointwise convolution of ESPnet's is a Linear of ours."""
    return value.squeeze(-1) if "pointwise_conv" in name and value.dim() == 3 else value


def randomise(model):
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        if "running_var" in name:
            value.uniform_(0.5, 2.0)
        elif value.dim() == 1:
            value.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
        else:
            value.normal_(0.0, value[0].numel() ** -0.5)


def copy(theirs, ours):
    state = {ours_of(n): reshape(n, v) for n, v in theirs.state_dict().items()}
    ours.load_state_dict(state)  # strict: every name must be met, on both sides


def conformer_pair(subsampling, macaron):
    theirs = conformer.ConformerEncoder(
        FEATURES,
        WIDTH,
        HEADS,
        UNITS,
        BLOCKS,
        dropout_rate=0.0,
        positional_dropout_rate=0.0,
        input_layer=espnet_input(subsampling),
        macaron_style=macaron,
        rel_pos_type="latest",
        cnn_module_kernel=7,
    )
    ours = ConformerEncoder(
        FEATURES,
        WIDTH,
        HEADS,
        UNITS,
        BLOCKS,
        subsampling,
        dropout=0.0,
        conv_kernel=7,
        macaron=macaron,
    )
    return theirs, ours


def e_branchformer_pair(subsampling, macaron, units=UNITS):
    theirs = e_branchformer.EBranchformerEncoder(
        FEATURES,
        WIDTH,
        HEADS,
        cgmlp_linear_units=64,
        cgmlp_conv_kernel=7,
        num_blocks=BLOCKS,
        dropout_rate=0.0,
        positional_dropout_rate=0.0,
        input_layer=espnet_input(subsampling),
        use_ffn=units > 0,
        macaron_ffn=macaron,
        linear_units=units,
        merge_conv_kernel=5,
    )
    ours = EBranchformerEncoder(
        FEATURES,
        WIDTH,
        HEADS,
        units,
        64,
        BLOCKS,
        subsampling,
        dropout=0.0,
        cgmlp_kernel=7,
        merge_kernel=5,
        macaron=macaron,
    )
    return theirs, ours


def espnet_input(subsampling):
    return {"conv2d4": "conv2d"}.get(subsampling, subsampling)


def run(model, x, lengths, weight=None):
    """Output, lengths, and the gradients of a weighted sum over the real frames."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y, new_lengths = model(x, lengths)[:2]
    real = padding_mask(new_lengths, y.shape[1])[..., None]
    y = y * real
    if weight is None:
        weight = torch.randn_like(y)
    (y * weight).sum().backward()
    return y.detach(), new_lengths, x.grad, weight


def difference(a, b):
    """Largest absolute difference, relative to the largest value where that is above 1."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


def compare(theirs, ours, lengths, record_property):
    x = torch.randn(len(lengths), int(lengths.max()), FEATURES)
    y, y_lengths, grad, weight = run(theirs, x, lengths)
    z, z_lengths, our_grad, _ = run(ours, x, lengths, weight)
    assert y_lengths.tolist() == z_lengths.tolist()
    assert y.abs().max() > 0.5
    forward = difference(z, y)
    real = padding_mask(lengths, x.shape[1])[..., None]
    grads = {"x": difference(our_grad, grad * real)}
    mine = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        expected = reshape(name, parameter.grad)
        grads[name] = difference(mine[ours_of(name)].grad, expected)
    worst = max(grads, key=grads.get)
    record_property("forward", forward)
    record_property("gradient", grads[worst])
    print(f"forward {forward:.1e}, gradient {grads[worst]:.1e} ({worst})")
    assert forward < 1e-4
    assert grads[worst] < 1e-4, worst


SUBSAMPLINGS = ["linear", "conv2d2", "conv2d4", "conv2d6", "conv2d8"]
LENGTHS = {"ragged": [61, 34, 50], "single": [47]}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("macaron", [True, False], ids=["macaron", "plain"])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("pair", [conformer_pair, e_branchformer_pair])
def test_eval(pair, subsampling, macaron, lengths, record_property):
    torch.manual_seed(1)
    theirs, ours = pair(subsampling, macaron)
    randomise(theirs)
    copy(theirs, ours)
    compare(theirs.eval(), ours.eval(), torch.tensor(lengths), record_property)


def test_e_branchformer_without_feed_forward(record_property):
    torch.manual_seed(1)
    theirs, ours = e_branchformer_pair("linear", False, units=0)
    randomise(theirs)
    copy(theirs, ours)
    compare(theirs.eval(), ours.eval(), torch.tensor(LENGTHS["ragged"]), record_property)


@pytest.mark.parametrize("pair", [conformer_pair, e_branchformer_pair])
def test_train_without_padding(pair, record_property):
    """Batch statistics too: ESPnet counts padding in them, so items of one length."""
    torch.manual_seed(1)
    theirs, ours = pair("conv2d4", True)
    randomise(theirs)
    copy(theirs, ours)
    compare(theirs.train(), ours.train(), torch.tensor([50, 50, 50]), record_property)
    buffers = dict(ours.named_buffers())
    for name, value in theirs.named_buffers():
        assert torch.allclose(buffers[ours_of(name)].float(), value.float(), atol=1e-5), name


def test_every_rule_is_used():
    """A rule that matches nothing hides a renamed parameter."""
    names = [n for p in (conformer_pair, e_branchformer_pair) for s in ("linear", "conv2d4")
             for n in p(s, True)[0].state_dict()]  # fmt: skip
    for pattern, _ in _RULES:
        assert any(_applies(pattern, n) for n in names), pattern


def _applies(wanted, name):
    for pattern, replacement in _RULES:
        if pattern == wanted:
            return re.search(pattern, name) is not None
        name = re.sub(pattern, replacement, name)
    return False
