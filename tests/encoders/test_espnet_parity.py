"""Our encoders against ESPnet 202611's, with the same random weights.

This pins the arithmetic, and the names, that importing ESPnet checkpoints relies on.
"""

import itertools
import re

import pytest
import torch

from speechattn.encoders import BranchformerEncoder, ConformerEncoder, EBranchformerEncoder
from speechattn.importing.espnet import ENCODER_RULES, encoder_weights
from speechattn.masks import padding_mask

_INSTALL = "needs ESPnet: pip install --no-deps --ignore-requires-python espnet==202611 typeguard"
espnet_ctc = pytest.importorskip("espnet2.asr.ctc", reason=_INSTALL, exc_type=ImportError)


def espnet(module):
    return pytest.importorskip(
        f"espnet2.asr.encoder.{module}", reason=_INSTALL, exc_type=ImportError
    )


FEATURES, WIDTH, VOCAB = 23, 32, 11

# What every model here is made with: the class, and arguments; ESPnet's, then ours.
THEIRS = {
    "conformer": (
        espnet("conformer_encoder").ConformerEncoder,
        {
            "linear_units": 48,
            "num_blocks": 2,
            "macaron_style": True,
            "rel_pos_type": "latest",
            "cnn_module_kernel": 7,
        },
    ),
    "e_branchformer": (
        espnet("e_branchformer_encoder").EBranchformerEncoder,
        {
            "linear_units": 48,
            "num_blocks": 2,
            "cgmlp_linear_units": 64,
            "cgmlp_conv_kernel": 7,
            "use_ffn": True,
            "macaron_ffn": True,
            "merge_conv_kernel": 5,
        },
    ),
    "branchformer": (
        espnet("branchformer_encoder").BranchformerEncoder,
        {"num_blocks": 2, "cgmlp_linear_units": 64, "cgmlp_conv_kernel": 7},
    ),
}
OURS = {
    "conformer": (
        ConformerEncoder,
        {"linear_units": 48, "num_blocks": 2, "conv_kernel": 7},
    ),
    "e_branchformer": (
        EBranchformerEncoder,
        {
            "linear_units": 48,
            "num_blocks": 2,
            "cgmlp_units": 64,
            "cgmlp_kernel": 7,
            "merge_kernel": 5,
        },
    ),
    "branchformer": (
        BranchformerEncoder,
        {"num_blocks": 2, "cgmlp_units": 64, "cgmlp_kernel": 7},
    ),
}

# ESPnet's options and ours for each, beside those above.
CASES = {
    "conformer": ("conformer", {}, {}),
    "conformer-plain": ("conformer", {"macaron_style": False}, {"macaron": False}),
    **{
        f"conformer-{name}": ("conformer", {"activation_type": name}, {"activation": name})
        for name in ("relu", "tanh", "hardtanh", "selu")
    },
    "conformer-intermediate": (
        "conformer",
        {"interctc_layer_idx": [1, 3], "num_blocks": 4},
        {"intermediate": [1, 3], "num_blocks": 4},
    ),
    "conformer-conditioned": (
        "conformer",
        {"interctc_layer_idx": [1, 3], "num_blocks": 4, "interctc_use_conditioning": True},
        {"intermediate": [1, 3], "num_blocks": 4, "self_conditioning": VOCAB},
    ),
    "e_branchformer": ("e_branchformer", {}, {}),
    "e_branchformer-plain": ("e_branchformer", {"macaron_ffn": False}, {"macaron": False}),
    "e_branchformer-no_ffn": ("e_branchformer", {"use_ffn": False}, {"linear_units": 0}),
    "e_branchformer-relu": (
        "e_branchformer",
        {"ffn_activation_type": "relu"},
        {"activation": "relu"},
    ),
    "e_branchformer-gate": (
        "e_branchformer",
        {"use_linear_after_conv": True, "gate_activation": "tanh"},
        {"gate_linear": True, "gate_activation": "tanh"},
    ),
    "e_branchformer-intermediate": (
        "e_branchformer",
        {"interctc_layer_idx": [2], "num_blocks": 3},
        {"intermediate": [2], "num_blocks": 3},
    ),
    "e_branchformer-conditioned": (
        "e_branchformer",
        {"interctc_layer_idx": [2], "num_blocks": 3, "interctc_use_conditioning": True},
        {"intermediate": [2], "num_blocks": 3, "self_conditioning": VOCAB},
    ),
    "branchformer": ("branchformer", {}, {}),
    "branchformer-gate": (
        "branchformer",
        {"use_linear_after_conv": True, "gate_activation": "swish"},
        {"gate_linear": True, "gate_activation": "swish"},
    ),
    "branchformer-learned": (
        "branchformer",
        {"merge_method": "learned_ave"},
        {"merge_method": "learned_ave"},
    ),
    "branchformer-fixed": (
        "branchformer",
        {"merge_method": "fixed_ave", "cgmlp_weight": 0.3},
        {"merge_method": "fixed_ave", "cgmlp_weight": 0.3},
    ),
    "branchformer-each_fixed": (
        "branchformer",
        {"merge_method": "fixed_ave", "cgmlp_weight": [0.0, 0.7, 1.0], "num_blocks": 3},
        {"merge_method": "fixed_ave", "cgmlp_weight": [0.0, 0.7, 1.0], "num_blocks": 3},
    ),
}
INPUTS = ["none", "linear", *(f"conv2d{n}" for n in (1, 2, 4, 6, 8))]
LENGTHS = {"ragged": [61, 34, 50], "single": [47], "level": [50, 50, 50]}


def pair(case, subsampling="linear", theirs=(), ours=()):
    """ESPnet's model, its CTC head and our model, with the same weights."""
    torch.manual_seed(1)
    kind, their_options, our_options = CASES[case]
    cls, options = THEIRS[kind]
    features = WIDTH if subsampling == "none" else FEATURES
    names = {"none": None, "conv2d4": "conv2d"}
    their_model = cls(
        features,
        WIDTH,
        dropout_rate=0.0,
        positional_dropout_rate=0.0,
        input_layer=names.get(subsampling, subsampling),
        **{**options, **their_options, **dict(theirs)},
    )
    if getattr(their_model, "interctc_use_conditioning", False):  # as ESPnet's whole model does
        their_model.conditioning_layer = torch.nn.Linear(VOCAB, WIDTH)
    cls, options = OURS[kind]
    our_model = cls(
        features,
        WIDTH,
        subsampling=subsampling,
        dropout=0.0,
        **{**options, **our_options, **dict(ours)},
    )
    ctc = espnet_ctc.CTC(VOCAB, WIDTH)
    randomise(their_model)
    our_model.load_state_dict(encoder_weights(their_model.state_dict()))  # strict
    return their_model, ctc, our_model


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


def their_outputs(model, ctc, x, lengths):
    options = {"ctc": ctc} if hasattr(model, "interctc_layer_idx") else {}
    y, lengths, _ = model(x, lengths, **options)
    return (y[0], dict(y[1]), lengths) if isinstance(y, tuple) else (y, {}, lengths)


def our_outputs(model, ctc, x, lengths):
    out = model.encode(x, lengths, head=ctc.log_softmax)
    return out.hidden, out.intermediate, out.lengths


def run(outputs, model, ctc, x, lengths):
    """Outputs by layer (0 the last), lengths, and the gradients of a weighted sum of them."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    ctc.zero_grad()
    y, layers, lengths = outputs(model, ctc, x, lengths)
    real = padding_mask(lengths, y.shape[1])[..., None]
    layers = {number: h * real for number, h in ((0, y), *layers.items())}
    ramp = torch.linspace(-1, 1, y.numel()).view_as(y).sin()
    sum((h * ramp * (number + 1)).sum() for number, h in layers.items()).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return layers, lengths, {**grads, "x": x.grad}, ctc.ctc_lo.weight.grad


def difference(a, b):
    """Largest absolute difference, relative to the largest value where that is above 1."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


def compare(models, lengths, record_property):
    theirs, ctc, ours = models
    lengths = torch.tensor(lengths)
    x = torch.randn(len(lengths), int(lengths.max()), ours.input_size)
    y, y_lengths, grads, head_grad = run(their_outputs, theirs, ctc, x, lengths)
    z, z_lengths, our_grads, our_head_grad = run(our_outputs, ours, ctc, x, lengths)
    assert y_lengths.tolist() == z_lengths.tolist()
    assert y.keys() == z.keys()
    assert all(h.abs().max() > 0.5 for h in y.values())
    forward = max(difference(z[number], h) for number, h in y.items())
    grads["x"] *= padding_mask(lengths, x.shape[1])[..., None]  # ESPnet lets padding in here
    grads = encoder_weights(grads)
    # ESPnet gives a zero gradient, and we none, to what a dropped branch would have learnt.
    grads = {name: g for name, g in grads.items() if name in our_grads or g.any()}
    assert grads.keys() == our_grads.keys()
    errors = {name: difference(our_grads[name], g) for name, g in grads.items()}
    if head_grad is not None:
        errors["head"] = difference(our_head_grad, head_grad)
    worst = max(errors, key=errors.get)
    record_property("forward", forward)
    record_property("gradient", errors[worst])
    print(f"forward {forward:.1e}, gradient {errors[worst]:.1e} ({worst})")
    assert forward < 1e-4
    assert errors[worst] < 1e-4, worst


@pytest.mark.parametrize("lengths", ["ragged", "single"])
@pytest.mark.parametrize("case", CASES)
def test_eval(case, lengths, record_property):
    theirs, ctc, ours = pair(case)
    compare((theirs.eval(), ctc, ours.eval()), LENGTHS[lengths], record_property)


def input_layers():
    for kind, subsampling in itertools.product(OURS, INPUTS):
        if (kind, subsampling) != ("branchformer", "none"):  # has no positions then
            yield kind, subsampling
    for n in (1, 2, 3):
        yield "e_branchformer", f"conv1d{n}"


@pytest.mark.parametrize(("case", "subsampling"), input_layers())
def test_input_layers(case, subsampling, record_property):
    theirs, ctc, ours = pair(case, subsampling)
    compare((theirs.eval(), ctc, ours.eval()), LENGTHS["ragged"], record_property)


@pytest.mark.parametrize("case", CASES)
def test_train(case, record_property):
    """Batch statistics too: ESPnet counts padding in them, so items of one length there."""
    theirs, ctc, ours = pair(case, "conv2d4")
    lengths = LENGTHS["level" if case.startswith("conformer") else "ragged"]
    compare((theirs.train(), ctc, ours.train()), lengths, record_property)
    buffers = dict(ours.named_buffers())
    for name, value in encoder_weights(dict(theirs.named_buffers())).items():
        assert torch.allclose(buffers[name].float(), value.float(), atol=1e-5), name


@pytest.mark.parametrize("draws", [[0.9, 0.9, 0.9], [0.1, 0.9, 0.1]], ids=["all", "one_of_three"])
@pytest.mark.parametrize("kind", ["conformer", "branchformer"])
def test_stochastic_depth(kind, draws, monkeypatch, record_property):
    """Which blocks are skipped, and how the others are scaled, with chance told what to say."""
    rates = [0.3, 0.0, 0.5, 0.3]  # nobody asks chance about the second block
    theirs, ctc, ours = pair(
        kind,
        theirs={"stochastic_depth_rate": rates, "num_blocks": 4},
        ours={"stochastic_depth": rates, "num_blocks": 4},
    )
    endless = itertools.cycle(draws)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(next(endless)))
    compare((theirs.train(), ctc, ours.train()), LENGTHS["level"], record_property)


def test_dropped_attention_branch(monkeypatch, record_property):
    theirs, ctc, ours = pair(
        "branchformer-learned",
        theirs={"attn_branch_drop_rate": [0.5, 0.2]},
        ours={"attention_drop": [0.5, 0.2]},
    )
    draws = itertools.cycle([0.3, 0.3])  # the first block drops it, the second does not
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(next(draws)))
    compare((theirs.train(), ctc, ours.train()), LENGTHS["ragged"], record_property)


def test_every_rule_is_used():
    """A rule that matches nothing hides a renamed parameter."""
    cases = ("conformer-conditioned", "linear"), ("e_branchformer-gate", "conv2d8"), (
        "branchformer-learned", "linear")  # fmt: skip
    names = [name for case in cases for name in pair(*case)[0].state_dict()]
    for pattern, replacement in ENCODER_RULES:
        after = [re.sub(pattern, replacement, name) for name in names]
        assert after != names, pattern
        names = after
