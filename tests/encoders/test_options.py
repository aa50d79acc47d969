"""What the stacked encoders' shared options do."""

import jsonargparse
import pytest
import torch
from torch import nn

from speechattn.attention import (
    RelativePositions,
    RelativeSelfAttention,
    SoftmaxSelfAttention,
)
from speechattn.encoders import (
    BranchformerEncoder,
    ConformerEncoder,
    EBranchformerEncoder,
    Encoder,
)
from speechattn.encoders.stacked import Block
from speechattn.masks import Chunks

ENCODERS = pytest.mark.parametrize(
    "cls", [ConformerEncoder, EBranchformerEncoder, BranchformerEncoder]
)
LENGTHS = torch.tensor([9, 5])


def build(cls, **options):
    torch.manual_seed(0)
    units = "cgmlp_units" if cls is BranchformerEncoder else "linear_units"
    options = {"num_blocks": 3, "subsampling": "linear", "dropout": 0.0, units: 20, **options}
    encoder = cls(6, 8, 2, **options)
    for parameter in encoder.parameters():  # norms that do nothing new would hide what is missing
        parameter.data += 0.2 * torch.randn_like(parameter)
    return encoder


def features():
    torch.manual_seed(1)
    return torch.randn(2, 9, 6)


@ENCODERS
def test_intermediate_frames_are_those_of_a_shorter_stack(cls):
    encoder = build(cls, intermediate=[2, 1]).eval()
    out = encoder.encode(features(), LENGTHS)
    assert list(out.intermediate) == [1, 2]
    for count, hidden in out.intermediate.items():
        shorter = build(cls, num_blocks=count).eval()
        shorter.load_state_dict(encoder.state_dict(), strict=False)
        if not encoder.norm_intermediate:
            shorter.norm = nn.Identity()
        assert torch.allclose(hidden, shorter(features(), LENGTHS)[0], atol=1e-6)
        assert not hidden[1, 5:].any()
    plain = build(cls).eval()
    plain.load_state_dict(encoder.state_dict())
    assert torch.equal(plain(features(), LENGTHS)[0], out.hidden)


@ENCODERS
def test_self_conditioning(cls):
    """What a layer hands out, through the head and back, is added to what the next one reads."""
    encoder = build(cls, intermediate=[1], self_conditioning=5).eval()
    head = nn.Linear(8, 5)
    seen = {}
    encoder.blocks[0].register_forward_hook(lambda m, a, y: seen.update(first=y))
    encoder.blocks[1].register_forward_pre_hook(lambda m, a: seen.update(second=a[0]))
    out = encoder.encode(features(), LENGTHS, lambda h: head(h).log_softmax(-1))
    x = seen["first"]
    hidden = encoder.norm(x) if cls is not EBranchformerEncoder else x
    expected = x + encoder.conditioning(head(hidden).softmax(-1))
    assert torch.allclose(seen["second"], expected, atol=1e-6)
    out.hidden.sum().backward()
    assert head.weight.grad.any() and encoder.conditioning.weight.grad.any()
    with pytest.raises(ValueError, match="pass `head`"):
        encoder(features(), LENGTHS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intermediate": [3]}, "from 1 to 2"),
        ({"intermediate": [0]}, "from 1 to 2"),
        ({"self_conditioning": 5}, "intermediate"),
        ({"stochastic_depth": [0.1]}, "stochastic_depth: 1 entries for 3 layers"),
        ({"stochastic_depth": 1.5}, "from 0 to 1"),
        ({"attention": [SoftmaxSelfAttention]}, "attention: 1 entries for 3 layers"),
        ({"chunk_size": -1}, "at least 1"),
        ({"left_context": -2, "dynamic_chunk": True}, "left is -1"),
        ({"layer_drop": 10}, "layer_drop is from 0 to 1"),
    ],
)
def test_errors_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        build(ConformerEncoder, **options)


def test_attention_drop_is_a_chance():
    with pytest.raises(ValueError, match="attention_drop is from 0 to 1"):
        build(BranchformerEncoder, merge_method="learned_ave", attention_drop=[0.1, 0.1, 10])


class Shift(Block):
    """Adds one."""

    def run(self, x, context, scale):
        return x + scale


@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_stochastic_depth_keeps_the_expectation(rate):
    torch.manual_seed(0)
    block, x = Shift(rate), torch.zeros(1, 1, 1)
    y = torch.stack([block(x, torch.tensor([1])) for _ in range(4000)]).flatten()
    assert set(y.tolist()) == {0.0, torch.tensor(1 / (1 - rate)).item()}
    error = 4 * y.std().item() / len(y) ** 0.5
    assert abs(y.mean().item() - 1) < error < 0.1
    assert block.eval()(x, torch.tensor([1])).item() == 1


@ENCODERS
def test_stochastic_depth_of_one_skips_all(cls):
    encoder = build(cls, stochastic_depth=1.0, intermediate=[2])
    out = encoder.encode(features(), LENGTHS)
    bare = encoder.positions(encoder.input(features(), LENGTHS)[0])[0]
    assert torch.allclose(out.hidden[0], encoder.norm(bare)[0])
    assert out.intermediate.keys() == {2}


def test_a_dropped_layer_still_hands_out_frames():
    encoder = build(ConformerEncoder, layer_drop=1.0, intermediate=[1, 2])
    assert encoder.encode(features(), LENGTHS).intermediate.keys() == {1, 2}


def test_dynamic_chunks_are_drawn_in_training_alone():
    torch.manual_seed(0)
    encoder = build(ConformerEncoder, dynamic_chunk=True, left_context=7)
    drawn = [encoder._own_chunks() for _ in range(3000)]
    assert 0.45 < drawn.count(None) / len(drawn) < 0.55
    sizes = [c.size for c in drawn if c is not None]
    assert set(sizes) == set(range(1, 26))
    assert all(c.left == 7 for c in drawn if c is not None)
    assert encoder.eval()._own_chunks() is None
    static = build(ConformerEncoder, dynamic_chunk=True, chunk_size=4).eval()
    assert static._own_chunks() == Chunks(4)


@ENCODERS
def test_a_training_batch_has_one_chunk_size(cls):
    encoder, plain = build(cls, dynamic_chunk=True), build(cls)
    x, lengths, outputs = torch.randn(2, 40, 6), torch.tensor([40, 22]), []
    for seed in range(8):
        torch.manual_seed(seed)
        chunks = encoder._own_chunks()
        torch.manual_seed(seed)
        outputs.append(encoder(x, lengths)[0])
        assert torch.equal(outputs[-1], plain.encode(x, lengths, chunks=chunks).hidden)
    assert any(not torch.allclose(outputs[0], y, atol=1e-3) for y in outputs)


def test_dropout_of_positions_is_its_own():
    assert build(ConformerEncoder, dropout=0.3).positions.dropout.p == 0.3
    encoder = build(ConformerEncoder, dropout=0.3, position_dropout=0.0)
    assert encoder.positions.dropout.p == 0.0
    rotary = build(ConformerEncoder, attention=SoftmaxSelfAttention, position_dropout=0.2)
    assert rotary.positions.dropout.p == 0.2


def test_each_layer_has_its_mechanism():
    mixed = build(
        ConformerEncoder,
        attention=[SoftmaxSelfAttention, RelativeSelfAttention, SoftmaxSelfAttention],
    )
    kinds = [type(block.attention) for block in mixed.blocks]
    assert kinds == [SoftmaxSelfAttention, RelativeSelfAttention, SoftmaxSelfAttention]
    assert isinstance(mixed.positions, RelativePositions)  # one of them wants distances
    y, _ = mixed.eval()(features(), LENGTHS)
    assert y.isfinite().all() and y.abs().max() > 0.1


def test_yaml_stays_flat():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--encoder", type=Encoder)
    for name, options in {
        "ConformerEncoder": {"intermediate": [1, 2], "stochastic_depth": [0.0, 0.1, 0.2]},
        "EBranchformerEncoder": {"stochastic_depth": 0.1, "gate_activation": "identity"},
        "BranchformerEncoder": {"cgmlp_weight": [0.1, 0.2, 0.3], "merge_method": "fixed_ave"},
    }.items():
        options = {"input_size": 8, "output_size": 8, "attention_heads": 2, "num_blocks": 3,
                   "attention": "RelativeSelfAttention", "chunk_size": 4, "dynamic_chunk": True,
                   "position_dropout": None, **options}  # fmt: skip
        path = f"speechattn.encoders.{name}"
        config = parser.parse_object({"encoder": {"class_path": path, "init_args": options}})
        encoder = parser.instantiate_classes(config).encoder
        assert type(encoder).__name__ == name
        assert encoder.chunks == Chunks(4)
        assert isinstance(encoder.blocks[0].attention, RelativeSelfAttention)


def test_yaml_names_mechanisms_and_their_options():
    """Of all layers or of each; the encoder fills in width, heads and dropout."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--encoder", type=Encoder)
    grouped = {"class_path": "speechattn.attention.SoftmaxSelfAttention",
               "init_args": {"kv_heads": 1, "positions": "alibi"}}  # fmt: skip
    for attention in (grouped, ["RelativeSelfAttention", grouped, grouped]):
        options = {"input_size": 8, "output_size": 8, "attention_heads": 2, "num_blocks": 3,
                   "attention_dropout": 0.25, "attention": attention}  # fmt: skip
        config = parser.parse_object(
            {"encoder": {"class_path": "ConformerEncoder", "init_args": options}}
        )
        mechanism = parser.instantiate_classes(config).encoder.blocks[2].attention
        assert isinstance(mechanism, SoftmaxSelfAttention)
        assert (mechanism.kv_heads, mechanism.dropout.p) == (1, 0.25)
    options["attention"] = "speechattn.encoders.ConformerEncoder"
    with pytest.raises(jsonargparse.ArgumentError, match="subclass of .*SelfAttention"):
        parser.parse_object({"encoder": {"class_path": "ConformerEncoder", "init_args": options}})


@ENCODERS
def test_what_follows_the_heads_is_named(cls):
    with pytest.raises(TypeError, match="positional"):
        cls(6, 8, 2, 20)


# What models trained before these options bear; a new name here would orphan them.
_ATTENTION = "query key value output".split()
_BLOCK = {
    *(f"attention.{name}.{kind}" for name in _ATTENTION for kind in ("weight", "bias")),
    *(f"attention.{name}" for name in ("position.weight", "content_bias", "position_bias")),
    *(
        f"{name}.{kind}"
        for kind in ("weight", "bias")
        for name in (
            "macaron_norm",
            "macaron.expand",
            "macaron.contract",
            "attention_norm",
            "feed_forward_norm",
            "feed_forward.expand",
            "feed_forward.contract",
            "norm",
        )
    ),
}
_CONFORMER = {
    f"{name}.{kind}"
    for kind in ("weight", "bias")
    for name in (
        "convolution_norm",
        "convolution.expand",
        "convolution.depthwise",
        "convolution.norm",
        "convolution.contract",
    )
} | {f"convolution.norm.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}
_E_BRANCHFORMER = {
    f"{name}.{kind}"
    for kind in ("weight", "bias")
    for name in (
        "cgmlp_norm",
        "cgmlp.expand",
        "cgmlp.norm",
        "cgmlp.depthwise",
        "cgmlp.contract",
        "merge_depthwise",
        "merge",
    )
}


_BRANCHFORMER = {name for name in _BLOCK | _E_BRANCHFORMER if "macaron" not in name}
_BRANCHFORMER = {n for n in _BRANCHFORMER if not n.startswith(("feed_forward", "merge_depthwise"))}


@pytest.mark.parametrize(
    ("cls", "block"),
    [
        (ConformerEncoder, _BLOCK | _CONFORMER),
        (EBranchformerEncoder, _BLOCK | _E_BRANCHFORMER),
        (BranchformerEncoder, _BRANCHFORMER),
    ],
)
def test_old_models_still_load(cls, block):
    encoder = cls(20, 8, 2, num_blocks=2, subsampling="conv2d4")
    whole = {"norm.weight", "norm.bias", "input.projection.weight", "input.projection.bias"}
    whole |= {f"input.convolutions.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    names = whole | {f"blocks.{i}.{name}" for i in (0, 1) for name in block}
    assert set(encoder.state_dict()) == names
