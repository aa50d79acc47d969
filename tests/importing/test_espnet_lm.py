"""ESPnet's language models through `import-checkpoint`, against its own; what is refused."""

import pytest
import torch
import yaml
from torch.testing import assert_close

from speechattn.data.tokenizers import CharTokenizer
from speechattn.decoding.fusion import read_fusion
from speechattn.errors import ConfigError
from speechattn.importing import import_checkpoint
from speechattn.lm.directory import load_lm
from speechattn.lm.transformer import TransformerLm, sequence_scores

TOKENS = ["<blank>", "<unk>", *"abcdefg", "<sos/eos>"]
V = len(TOKENS)
CONF = {"embed_unit": 8, "att_unit": 16, "head": 4, "unit": 32, "layer": 2}
CONFIG = {
    "lm": "transformer",
    "lm_conf": CONF,
    "model_conf": {"ignore_id": 0},
    "token_list": TOKENS,
    "token_type": "char",
    "optim": "adam",
    "max_epoch": 15,
    "use_amp": True,
    "version": "202611",
}


def write(folder, state, **changes):
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))
    torch.save(state, folder / "valid.loss.ave.pth")
    return folder


@pytest.mark.parametrize("positions", [None, "sinusoidal"])
def test_log_probabilities_and_gradients(positions, tmp_path):
    transformer_lm = pytest.importorskip(
        "espnet2.lm.transformer_lm", reason="pip install espnet==202611 to compare with ESPnet"
    )
    from espnet2.lm.espnet_model import ESPnetLanguageModel

    torch.manual_seed(0)
    conf = {**CONF, "pos_enc": positions, "attention_dropout_rate": 0.0}
    theirs = ESPnetLanguageModel(transformer_lm.TransformerLM(V, **conf), V).eval()
    for value in theirs.parameters():
        torch.nn.init.normal_(value, 0.5 if value.dim() == 1 else 0.0, 0.3)
    exp = write(tmp_path / "exp", theirs.state_dict(), lm_conf=conf)
    ours, tokenizer = load_lm(import_checkpoint("espnet", exp, tmp_path / "lm"))
    assert tokenizer.tokens == TOKENS
    text = torch.tensor([[2, 3, 4, 4, 8], [5, 2, 0, 0, 0], [7, 1, 6, 0, 0]])
    lengths = torch.tensor([5, 2, 3])
    nll, _ = theirs.nll(text, lengths)  # (B, U + 1), <eos> included, 0 beyond a length
    tokens = torch.cat([torch.full((3, 1), V - 1), text], 1)
    scores = sequence_scores(ours, tokens, lengths + 1)
    assert_close(scores.float(), -nll.sum(1), atol=1e-4, rtol=1e-5)
    nll.sum().backward()
    (-scores.sum()).backward()
    grad = dict(theirs.named_parameters())
    assert_close(ours.output.weight.grad, grad["lm.decoder.weight"].grad, atol=1e-3, rtol=1e-4)
    assert_close(ours.embed.weight.grad[2:], grad["lm.embed.weight"].grad[2:], atol=1e-3, rtol=1e-4)


def theirs_by_name(lm):
    """Our weights by ESPnet's published names."""
    state = {}
    for name, value in lm.state_dict().items():
        name = name.replace("input.", "encoder.embed.").replace("layers.", "encoder.encoders.")
        name = name.replace("after_norm", "encoder.after_norm").replace("output.", "decoder.", 1)
        name = name.replace(".self_attention.decoder.", ".self_attn.linear_out.")
        name = name.replace(".feed_forward.0.", ".feed_forward.w_1.")
        name = name.replace(".feed_forward.3.", ".feed_forward.w_2.")
        name = name.replace("norm_self", "norm1").replace("norm_feed_forward", "norm2")
        if ".self_attention.project." in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                theirs = name.replace("self_attention.project", f"self_attn.linear_{letter}")
                state[f"lm.{theirs}"] = part
        else:
            state[f"lm.{name}"] = value
    return state


@pytest.fixture
def lm():
    torch.manual_seed(0)
    return TransformerLm(V, 16, 4, 32, num_blocks=2, embed_size=8).eval()


def test_weights_come_back(lm, tmp_path):
    exp = write(tmp_path / "exp", theirs_by_name(lm))
    folder = import_checkpoint("espnet", exp, tmp_path / "lm")
    found, tokenizer = load_lm(folder)
    for name, value in lm.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    fusion = read_fusion(tokenizer, lm=folder)
    assert fusion.lm is not None and list(fusion.sources) == ["lm"]
    other = CharTokenizer.train(["bacdefg", "b"])
    with pytest.raises(ConfigError, match="its units are not those of the model"):
        read_fusion(other, lm=folder)


def test_what_is_refused(lm, tmp_path):
    state = theirs_by_name(lm)
    for i, (changes, message) in enumerate(
        (
            ({"lm": "seq_rnn", "lm_conf": {"unit": 650}}, "lm: 'seq_rnn': only 'transformer'"),
            ({"lm_conf": {**CONF, "pos_enc": "rotary"}}, "lm_conf.pos_enc: 'rotary'"),
            ({"lm_conf": {**CONF, "tied": True}}, "lm_conf.tied: True: this key is not known"),
            ({"model": "lm_multitask"}, "model: 'lm_multitask'"),
            ({"frontend": "default"}, "frontend: 'default': this key is not known"),
            ({"lm_conf": {**CONF, "layer": 3}}, "weight.s. of the model.* are not in it"),
            ({"lm_conf": {**CONF, "unit": 40}}, "of another shape"),
        )
    ):
        exp = write(tmp_path / f"exp{i}", state, **changes)
        with pytest.raises(ConfigError, match=message):
            import_checkpoint("espnet", exp, tmp_path / "lm")
        assert not (tmp_path / "lm").exists()
    exp = write(tmp_path / "exp", {**state, "lm.extra": torch.zeros(2)})
    with pytest.raises(ConfigError, match="extra"):
        import_checkpoint("espnet", exp, tmp_path / "lm")
    with pytest.raises(ConfigError, match="--decode"):
        import_checkpoint("espnet", exp, tmp_path / "lm", decode=tmp_path / "decode.yaml")
