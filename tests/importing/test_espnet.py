"""ESPnet's names and configuration without ESPnet: a state dict by its published names."""

import re

import pytest
import torch
import yaml

from speechattn.decoding import CtcGreedySearch, JointSearch
from speechattn.decoding.config import search_of
from speechattn.errors import ConfigError
from speechattn.importing import import_checkpoint
from speechattn.importing.espnet import (
    DECODER_RULES,
    ENCODER_RULES,
    decoder_names,
    encoder_names,
)
from speechattn.importing.keys import IGNORED, fixed, passed, translate
from speechattn.model.directory import load_model, read_config

TOKENS = ["<blank>", "<unk>", "a", "b", "<sos/eos>"]
V, D = len(TOKENS), 16
CONFIG = {
    "token_list": TOKENS,
    "token_type": "char",
    "frontend": "default",
    "frontend_conf": {"fs": "16k", "n_fft": 400, "hop_length": 160, "n_mels": 20},
    "normalize": "global_mvn",
    "normalize_conf": {"stats_file": "exp/stats/train/feats_stats.npz"},
    "encoder": "conformer",
    "encoder_conf": {
        "output_size": D,
        "attention_heads": 2,
        "linear_units": 24,
        "num_blocks": 2,
        "rel_pos_type": "latest",
        "macaron_style": True,
        "cnn_module_kernel": 3,
    },
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 2, "linear_units": 24, "num_blocks": 1},
    "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1},
    "optim": "adam",
    "max_epoch": 60,
    "use_amp": True,
}


def state_dict(old_names=False):
    """Weights of CONFIG by the names that ESPnet gives, today's or those of 2020."""
    shapes = {
        "normalize.mean": (20,),
        "normalize.std": (20,),
        "encoder.embed.conv.0.weight": (D, 1, 3, 3),
        "encoder.embed.conv.0.bias": (D,),
        "encoder.embed.conv.2.weight": (D, D, 3, 3),
        "encoder.embed.conv.2.bias": (D,),
        f"encoder.embed.out.{'0.' if old_names else ''}weight": (D, D * 4),
        f"encoder.embed.out.{'0.' if old_names else ''}bias": (D,),
        "ctc.ctc_lo.weight": (V, D),
        "ctc.ctc_lo.bias": (V,),
        "decoder.embed.0.weight": (V, D),
        "decoder.output_layer.weight": (V, D),
        "decoder.output_layer.bias": (V,),
    }
    if old_names:
        shapes["encoder.embed.out.1.pe"] = shapes["decoder.embed.1.pe"] = (1, 5000, D)
    norms = ["encoder.after_norm", "decoder.after_norm"]
    linears = {}
    for i in range(2):
        name = f"encoder.encoders.{i}"
        norms += [f"{name}.norm_{n}" for n in ("ff", "mha", "ff_macaron", "conv", "final")]
        linears |= {f"{name}.self_attn.linear_{n}": (D, D) for n in ("q", "k", "v", "out")}
        for part in ("feed_forward", "feed_forward_macaron"):
            linears |= {f"{name}.{part}.w_1": (24, D), f"{name}.{part}.w_2": (D, 24)}
        linears |= {
            f"{name}.conv_module.pointwise_conv1": (2 * D, D, 1),
            f"{name}.conv_module.depthwise_conv": (D, 1, 3),
            f"{name}.conv_module.pointwise_conv2": (D, D, 1),
        }
        shapes |= {f"{name}.self_attn.pos_bias_{n}": (2, D // 2) for n in "uv"}
        shapes[f"{name}.self_attn.linear_pos.weight"] = (D, D)
        shapes |= {f"{name}.conv_module.norm.running_{n}": (D,) for n in ("mean", "var")}
        norms.append(f"{name}.conv_module.norm")
    name = "decoder.decoders.0"
    norms += [f"{name}.norm{n}" for n in (1, 2, 3)]
    for part in ("self_attn", "src_attn"):
        linears |= {f"{name}.{part}.linear_{n}": (D, D) for n in ("q", "k", "v", "out")}
    linears |= {f"{name}.feed_forward.w_1": (24, D), f"{name}.feed_forward.w_2": (D, 24)}
    for norm in norms:
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (D,)
    for linear, shape in linears.items():
        shapes[f"{linear}.weight"], shapes[f"{linear}.bias"] = shape, shape[:1]
    generator = torch.Generator().manual_seed(0)
    return {n: torch.rand(s, generator=generator) + 0.1 for n, s in shapes.items()}


def run(tmp_path, config=CONFIG, state=None, **options):
    exp = tmp_path / "exp"
    exp.mkdir(exist_ok=True)
    (exp / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(state_dict() if state is None else state, exp / "model.pth")
    return import_checkpoint("espnet", exp, tmp_path / "model", **options)


def refused(tmp_path, config, *reasons):
    with pytest.raises(ConfigError) as error:
        run(tmp_path, config)
    for reason in reasons:
        assert reason in str(error.value)
    assert not (tmp_path / "model").exists()


def changed(section=None, **keys):
    if section is None:
        return {**CONFIG, **keys}
    return {**CONFIG, section: {**CONFIG[section], **keys}}


@pytest.mark.parametrize("old_names", [False, True], ids=["202611", "2020"])
def test_weights_land_in_their_places(tmp_path, old_names):
    state = state_dict(old_names)
    model = load_model(run(tmp_path, state=state))
    ours = model.state_dict()
    out = "encoder.embed.out.0" if old_names else "encoder.embed.out"
    attention = "decoder.decoders.0.self_attn.linear"
    for name, expected in {
        "streams.audio.frontend.cmvn.mean": state["normalize.mean"],
        "streams.audio.frontend.cmvn.istd": 1 / state["normalize.std"],
        "streams.audio.encoder.input.projection.weight": state[f"{out}.weight"],
        "streams.audio.encoder.blocks.1.macaron.expand.bias": state[
            "encoder.encoders.1.feed_forward_macaron.w_1.bias"
        ],
        "streams.audio.encoder.blocks.0.convolution.expand.weight": state[
            "encoder.encoders.0.conv_module.pointwise_conv1.weight"
        ][:, :, 0],
        "decoder.layers.0.self_attention.project.weight": torch.cat(
            [state[f"{attention}_{c}.weight"] for c in "qkv"]
        ),
        "ctc.bias": state["ctc.ctc_lo.bias"],
    }.items():
        torch.testing.assert_close(ours[name], expected, msg=name)
    assert model.frame_shift == pytest.approx(0.04)  # 160 samples, 4 frames


def test_search(tmp_path):
    decode = tmp_path / "decode.yaml"
    decode.write_text(
        "beam_size: 7\nctc_weight: 0.4\npenalty: 0.1\nlm_weight: 0.0\nbatch_size: 1\n"
    )
    search = search_of(read_config(run(tmp_path, decode=decode)))
    assert search == JointSearch(beam_size=7, ctc_weight=0.4, length_bonus=0.1)
    (tmp_path / "model").rename(tmp_path / "other")
    for text, reason in (
        ("maxlenratio: -20", "max_length_ratio has to be 0 or more, got -20"),
        ("beam_size: 0", "beam_size"),
        ("ctc_weight: some", "ctc_weight"),
    ):
        decode.write_text(text)
        with pytest.raises(ConfigError, match=rf"(?s)decode\.yaml: .*{reason}"):
            run(tmp_path, decode=decode)
    assert not (tmp_path / "model").exists()
    decode.write_text("lm_weight: 0.3\nnew: 1\n")
    with pytest.raises(ConfigError, match=r"(?s)new: 1: this key is not known.*lm_weight: 0\.3"):
        run(tmp_path, decode=decode)


def test_ctc_alone(tmp_path):
    config = changed(model_conf={"ctc_weight": 1.0}, decoder=None)
    state = {n: v for n, v in state_dict().items() if not n.startswith("decoder.")}
    folder = run(tmp_path, config, state)
    assert load_model(folder).decoder is None
    assert search_of(read_config(folder)) == CtcGreedySearch()


def test_every_key_in_the_way_is_listed(tmp_path):
    config = changed("encoder_conf", rel_pos_type="legacy", concat_after=True, warp=2)
    config |= {"preencoder": "sinc", "speech_volume_normalize": 0.9, "brand_new": None}
    config["model_conf"] = {"ctc_weight": 0.0, "sym_blank": "<b>"}
    config["frontend_conf"] = {"window": "hamming", "frontend_conf": {"use_wpe": True}}
    refused(
        tmp_path,
        config,
        "encoder_conf.rel_pos_type: 'legacy'",
        "encoder_conf.concat_after: True: only False",
        "encoder_conf.warp: 2: this key is not known",
        "preencoder: 'sinc': only None",
        "speech_volume_normalize: 0.9",
        "brand_new: None: this key is not known",
        "model_conf.ctc_weight: 0",
        "model_conf.sym_blank: '<b>'",
        "frontend_conf.window: 'hamming'",
        "frontend_conf.frontend_conf.use_wpe",
    )


def test_a_missing_key_means_espnets_default(tmp_path):
    conf = {k: v for k, v in CONFIG["encoder_conf"].items() if k != "rel_pos_type"}
    refused(tmp_path, changed(encoder_conf=conf), "rel_pos_type", "'latest'")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (changed(encoder="rnn"), "encoder: 'rnn': only conformer"),
        (changed(decoder="transducer"), "decoder: 'transducer'"),
        (changed(input_size=83, frontend=None), "fbank_pitch"),
        (changed(normalize_conf={"norm_vars": False}), "norm_vars have to be true"),
        (changed(frontend="s3prl"), "frontend: 's3prl': only 'default'"),
        (changed(token_type="phn"), "token_type: 'phn'"),
        (changed(token_type="bpe", bpemodel="data/bpe.model"), "--bpe-model"),
        (changed(token_list="data/tokens.txt"), "--tokens"),
        (changed(token_list=[*TOKENS[:-1], "ab", TOKENS[-1]]), "single characters"),
        (changed(encoder_conf={"rel_pos_type": "latest", "attention_heads": 3}), "256"),
        # What is of another kind than any ESPnet writes.
        (changed(encoder_conf="x"), "encoder_conf: 'x': is no section"),
        (changed(frontend_conf=[1]), "frontend_conf: [1]: is no section"),
        (changed(normalize_conf=3), "normalize_conf: 3: is no section"),
        (changed(model_conf={"ctc_weight": "x"}), "model_conf.ctc_weight: 'x'"),
        (changed(encoder=["conformer"]), "encoder: ['conformer']"),
        (changed("encoder_conf", interctc_layer_idx=3), "encoder_conf.interctc_layer_idx: 3"),
        (changed("frontend_conf", fs="wide"), "frontend_conf.fs: 'wide'"),
        (changed("frontend_conf", fs=8000.5), "frontend_conf.fs: 8000.5"),
        (changed("frontend_conf", hop_length=0), "frontend_conf.hop_length: 0"),
        (changed("frontend_conf", fmin="low"), "frontend_conf.low"),
        (changed(token_type="bpe", bpemodel=5), "bpemodel: 5"),
        # What our modules do not have.
        (changed("encoder_conf", selfattention_layer_type="selfattn"), "'selfattn'"),
        (changed("encoder_conf", selfattention_layer_type="fast_selfattn"), "'fast_selfattn'"),
        (changed("encoder_conf", ctc_trim=True), "encoder_conf.ctc_trim: True"),
        (changed("encoder_conf", qk_norm=True), "encoder_conf.qk_norm: True"),
        (changed("encoder_conf", use_cnn_module=False), "encoder_conf.use_cnn_module: False"),
        (changed("encoder_conf", positionwise_layer_type="conv1d"), "'conv1d'"),
        (changed("encoder_conf", positionwise_layer_type="conv1d-linear"), "'conv1d-linear'"),
        (changed(encoder="branchformer", encoder_conf={"use_attn": False}), "use_attn: False"),
    ],
)
def test_other_configurations(tmp_path, config, reason):
    refused(tmp_path, config, reason)


def test_unknown_and_missing_weights(tmp_path):
    state = state_dict()
    state["encoder.conditioning_layer.weight"] = torch.ones(D, V)
    state["joint_network.lin_enc.weight"] = torch.ones(2, 2)
    del state["encoder.encoders.0.norm_mha.weight"]
    with pytest.raises(ConfigError) as error:
        run(tmp_path, state=state)
    message = str(error.value)
    assert "2 weight(s) in it have no place in the model" in message
    assert "encoder.conditioning_layer.weight" in message
    assert "joint_network.lin_enc.weight" in message
    assert "streams.audio.encoder.blocks.0.attention_norm.weight" in message


def test_mel_filters_are_compared(tmp_path):
    state = {**state_dict(), "frontend.logmel.melmat": torch.ones(201, 20)}
    with pytest.raises(ConfigError, match="mel filters"):
        run(tmp_path, state=state)


def test_statistics_beside_the_configuration(tmp_path):
    import numpy as np

    state = {n: v for n, v in state_dict().items() if not n.startswith("normalize.")}
    stats = tmp_path / "exp" / "stats" / "train"
    stats.mkdir(parents=True)
    np.savez(stats / "feats_stats.npz", count=2, sum=np.full(20, 6.0), sum_square=np.full(20, 26.0))
    cmvn = load_model(run(tmp_path, state=state)).streams["audio"].frontend.cmvn
    torch.testing.assert_close(cmvn.mean, torch.full((20,), 3.0))
    torch.testing.assert_close(cmvn.istd, torch.full((20,), 0.5))


@pytest.mark.parametrize("content", [b"", b"no numbers", b"PK\x03\x04 no archive"])
def test_broken_statistics(tmp_path, content):
    state = {n: v for n, v in state_dict().items() if not n.startswith("normalize.")}
    stats = tmp_path / "exp" / "stats" / "train"
    stats.mkdir(parents=True)
    (stats / "feats_stats.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"feats_stats\.npz: cannot be read"):
        run(tmp_path, state=state)


def test_checkpoints_to_choose_from(tmp_path):
    run(tmp_path)
    (tmp_path / "exp" / "other.pth").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"there are: model\.pth, other\.pth"):
        import_checkpoint("espnet", tmp_path / "exp", tmp_path / "second")
    chosen = tmp_path / "exp" / "model.pth"
    assert import_checkpoint("espnet", chosen, tmp_path / "second").is_dir()


def test_values_are_compared_by_kind():
    problems = []
    keys = {"a": fixed(False), "b": passed("c", 3), "d": IGNORED}
    assert translate({"a": 0, "d": "x"}, keys, "s.", problems) == {"c": 3}
    assert problems == ["s.a: 0: only False can be imported"]


def test_every_rule_is_used():
    """A rule that matches nothing hides a renamed parameter."""
    encoder = """embed.conv.0.weight embed.conv.2.weight embed.conv.4.weight embed.out.weight
        embed.0.bias embed.1.weight after_norm.weight conditioning_layer.weight
        encoders.0.attn.linear_q.weight encoders.0.attn.linear_k.weight
        encoders.0.attn.linear_v.weight encoders.0.attn.linear_out.weight
        encoders.0.attn.linear_pos.weight encoders.0.attn.pos_bias_u encoders.0.attn.pos_bias_v
        encoders.0.norm_ff_macaron.weight encoders.0.feed_forward_macaron.w_1.weight
        encoders.0.norm_ff.weight encoders.0.norm_mha.weight encoders.0.norm_conv.weight
        encoders.0.norm_mlp.weight encoders.0.norm_final.weight encoders.0.feed_forward.w_2.weight
        encoders.0.conv_module.pointwise_conv1.weight encoders.0.conv_module.pointwise_conv2.bias
        encoders.0.conv_module.depthwise_conv.bias encoders.0.cgmlp.channel_proj1.0.weight
        encoders.0.cgmlp.channel_proj2.weight encoders.0.cgmlp.csgu.norm.weight
        encoders.0.cgmlp.csgu.conv.weight encoders.0.cgmlp.csgu.linear.weight
        encoders.0.pooling_proj1.weight encoders.0.pooling_proj2.weight
        encoders.0.weight_proj1.weight encoders.0.weight_proj2.weight
        encoders.0.depthwise_conv_fusion.weight encoders.0.merge_proj.weight""".split()
    decoder = """embed.0.weight output_layer.weight output_norm.weight
        decoders.0.self_attn.linear_out.weight decoders.0.src_attn.linear_q.weight
        decoders.0.src_attn.linear_out.weight decoders.0.feed_forward.w_1.weight
        decoders.0.feed_forward.w_2.weight decoders.0.norm1.weight decoders.0.norm2.weight
        decoders.0.norm3.weight""".split()
    for rules, names in ((ENCODER_RULES, encoder), (DECODER_RULES, decoder)):
        for wanted, _ in rules:
            assert any(_applies(rules, wanted, name) for name in names), wanted
    assert len(encoder_names(encoder)) == len(encoder)
    assert len(decoder_names(decoder)) == len(decoder)


def _applies(rules, wanted, name):
    for pattern, replacement in rules:
        if pattern == wanted:
            return re.search(pattern, name) is not None
        name = re.sub(pattern, replacement, name)
    return False


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("decoder.decoders.0.src_attn.linear_k.weight", torch.ones(4, 4), "not of one shape"),
        ("decoder.decoders.0.src_attn.linear_k.weight", torch.ones(()), "not of one shape"),
        ("ctc.ctc_lo.bias", torch.ones(V).to_sparse(), "sparse, complex or empty: ctc.ctc_lo.bias"),
        ("ctc.ctc_lo.bias", torch.ones(V, device="meta"), "sparse, complex or empty"),
        ("ctc.ctc_lo.bias", torch.ones(V, dtype=torch.complex64), "sparse, complex or empty"),
        # The older name of what is there by the newer one.
        ("decoder.output_norm.weight", torch.ones(D), "have the place of another"),
        ("encoder.embed.out.0.bias", torch.ones(D), "have the place of another"),
    ],
)
def test_odd_weights(tmp_path, name, value, reason):
    with pytest.raises(ConfigError, match=rf"(?s)model\.pth: .*{reason}"):
        run(tmp_path, state={**state_dict(), name: value})
    assert not (tmp_path / "model").exists()


def test_a_strangers_configuration_names_no_file_elsewhere(tmp_path):
    """Its token list would be copied into the model directory."""
    secret, inside = tmp_path / "secret" / "tokens.txt", tmp_path / "a/b/c/d/exp/tokens.txt"
    for path in (secret, inside):
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(TOKENS), encoding="utf-8")
    for name in (str(secret), "../../../../../secret/tokens.txt"):
        refused(tmp_path / "a/b/c/d", changed(token_list=name), "token_list", "--tokens")
    for name in (str(inside), "tokens.txt", "exp/tokens.txt", "exp/../exp/tokens.txt"):
        folder = run(tmp_path / "a/b/c/d", changed(token_list=name))
        assert (folder / "tokens.txt").read_text().split() == TOKENS
        folder.rename(folder.with_name(f"done{len(name)}"))
    # Named by the user it may be anywhere.
    run(tmp_path / "a/b/c/d", changed(token_list="none"), tokens=secret)
