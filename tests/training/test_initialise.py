"""Weights taken over from trained models."""

import pytest
import torch
import yaml

from speechattn.data.tokenizers import CharTokenizer, Tokenizer
from speechattn.errors import ConfigError
from speechattn.model.directory import build_model, save_model_dir
from speechattn.training import train
from speechattn.training.initialise import initialise


@pytest.fixture
def tokenizer(tiny_corpus):
    return Tokenizer.load(tiny_corpus.folder / "tokens")


@pytest.fixture
def saved(tiny_model, tokenizer, tmp_path):
    """Write a model directory by modality and seed, its section changed; gives its weights too."""

    def make(modality: str, seed: int, tokens: Tokenizer = tokenizer, change=lambda config: None):
        torch.manual_seed(seed)
        config = yaml.safe_load(yaml.safe_dump(tiny_model(modality)))
        change(config)
        model = build_model(config, tokens.vocab_size)
        folder = tmp_path / f"{modality}{seed}"
        save_model_dir(folder, {"model": config}, model.state_dict(), tokens, {})
        return folder, model.state_dict()

    return make


@pytest.fixture
def audio_visual(tiny_model, tokenizer):
    torch.manual_seed(9)
    return build_model(tiny_model("av"), tokenizer.vocab_size)


def test_streams_of_an_audio_visual_model(saved, audio_visual, tokenizer):
    heard, audio = saved("audio", 1)
    seen, video = saved("video", 2)
    before = {k: v.clone() for k, v in audio_visual.state_dict().items()}
    count = initialise(audio_visual, [heard, seen], tokenizer)
    after = audio_visual.state_dict()
    for source, name in ((audio, "audio"), (video, "video")):
        for key in source:
            if key.startswith("streams."):
                assert torch.equal(after[key], source[key])
        assert torch.equal(after[f"stream_ctc.{name}.weight"], source["ctc.weight"])
    # The first model given has the say on what both have.
    assert torch.equal(after["ctc.weight"], audio["ctc.weight"])
    fusion = [k for k in after if k.startswith("fusion.")]
    assert fusion and all(torch.equal(after[k], before[k]) for k in fusion)
    assert count == len(after) - len(fusion)


CLASSIFIER = {
    "ctc.weight", "ctc.bias", "decoder.embed.weight", "decoder.output.weight",
    "decoder.output.bias",
}  # fmt: skip


def test_other_tokens_keep_their_rows(saved, tiny_model, tokenizer, caplog):
    """A token that both have keeps what was learnt of it, at its new place; others begin anew."""
    other = CharTokenizer.train(["abba quite another text"])
    assert {"a", "b"} < set(other.tokens) and "c" not in other.tokens and "c" in tokenizer.tokens
    folder, given = saved("audio", 1, other)
    model = build_model(tiny_model("audio"), tokenizer.vocab_size)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    initialise(model, [folder], tokenizer)
    moved = 0
    for key, value in model.state_dict().items():
        if key not in CLASSIFIER:
            assert torch.equal(value, given[key]), key
            continue
        for i, token in enumerate(tokenizer.tokens):
            if token in other.tokens:
                place = other.tokens.index(token)
                assert torch.equal(value[i], given[key][place]), (key, token)
                moved += place != i
            else:
                assert torch.equal(value[i], before[key][i]), (key, token)
    assert moved  # else the test would not see a mistake
    assert f"copied for 5 of {tokenizer.vocab_size}" in caplog.text


def test_a_renewed_classifier(saved, tiny_model, tokenizer):
    """For the same tokens too; the decoder's layers are kept."""

    def both_ways(config):
        config["decoder"]["class_path"] = "speechattn.decoders.BidirectionalDecoder"

    folder, given = saved("audio", 1, change=both_ways)
    config = tiny_model("audio")
    both_ways(config)
    model = build_model(config, tokenizer.vocab_size)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    initialise(model, [folder], tokenizer, renew_classifier=True)
    renewed = {k for k, v in model.state_dict().items() if torch.equal(v, before[k])}
    renewed -= {k for k in given if torch.equal(given[k], before[k])}
    names = {k.removeprefix("decoder.") for k in CLASSIFIER if k.startswith("decoder.")}
    expected = {"ctc.weight", "ctc.bias"}
    expected |= {f"decoder.{side}.{name}" for side in ("left", "right") for name in names}
    assert renewed == expected
    for name in given:
        if name not in expected:
            assert torch.equal(model.state_dict()[name], given[name])


def test_renewing_needs_a_model(tiny_config, tmp_path, tiny_corpus):
    folder = tiny_corpus.folder
    with pytest.raises(ConfigError, match="--renew-classifier.*--init"):
        train(
            tiny_config("audio"), folder / "cuts_train.jsonl.gz", folder / "cuts_dev.jsonl.gz",
            folder / "tokens", tmp_path, renew_classifier=True,
        )  # fmt: skip


def test_nothing_to_give(saved, tiny_model, tokenizer):
    folder, _ = saved("video", 1, change=lambda config: config.update(decoder=None))
    model = build_model(tiny_model("audio"), tokenizer.vocab_size)
    with pytest.raises(ConfigError, match="none of its tensors"):
        initialise(model, [folder], tokenizer, renew_classifier=True)


def test_another_shape_is_named(saved, tiny_model, tokenizer):
    folder, _ = saved("audio", 1)
    config = tiny_model("audio")
    arguments = config["audio"]["encoder"]["init_args"]
    arguments["linear_units"] = arguments["linear_units"] * 2
    model = build_model(config, tokenizer.vocab_size)
    with pytest.raises(ConfigError, match="streams.audio.encoder.*there and"):
        initialise(model, [folder], tokenizer)


def test_without_models_nothing_changes(tiny_model, tokenizer):
    model = build_model(tiny_model("audio"), tokenizer.vocab_size)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert initialise(model, [], tokenizer) == 0
    torch.testing.assert_close(model.state_dict(), before, atol=0, rtol=0)


def test_other_tokens_and_self_conditioning(saved, tiny_model, tokenizer):
    """It has a column for each token, as a head has a row."""
    other = CharTokenizer.train(["quite another text"])

    def conditioned(config, units):
        config["audio"]["encoder"]["init_args"] |= {
            "num_blocks": 2,
            "intermediate": [1],
            "self_conditioning": units,
        }

    folder, given = saved("audio", 1, other, lambda c: conditioned(c, other.vocab_size))
    config = tiny_model("audio")
    conditioned(config, tokenizer.vocab_size)
    model = build_model(config, tokenizer.vocab_size)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    initialise(model, [folder], tokenizer)
    after = model.state_dict()
    name = "streams.audio.encoder.conditioning.weight"
    for i, token in enumerate(tokenizer.tokens):
        if token in other.tokens:
            assert torch.equal(after[name][:, i], given[name][:, other.tokens.index(token)])
        else:
            assert torch.equal(after[name][:, i], before[name][:, i])
    for name in ("conditioning.bias", "blocks.1.norm.weight"):
        name = f"streams.audio.encoder.{name}"
        assert torch.equal(after[name], given[name])


def test_fused_frames_of_another_width(saved, tiny_model, tokenizer, caplog):
    """The encoders and the stream's head are of use, what listens to the fused frames is not."""
    heard, audio = saved("audio", 1)
    config = tiny_model("av")
    config["fusion"]["output_size"] = config["decoder"]["init_args"]["memory_size"] = 20
    model = build_model(config, tokenizer.vocab_size)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    initialise(model, [heard], tokenizer)
    after = model.state_dict()
    for name in (k for k in audio if k.startswith("streams.audio.")):
        assert torch.equal(after[name], audio[name])
    assert torch.equal(after["stream_ctc.audio.weight"], audio["ctc.weight"])
    for name in (k for k in after if k.startswith(("ctc.", "decoder."))):
        assert torch.equal(after[name], before[name])
    assert "width 16, here they are 20 wide" in caplog.text


def test_decoders_of_one_and_of_two_directions(saved, tiny_model, tokenizer):
    def both_ways(config):
        config["decoder"]["class_path"] = "speechattn.decoders.BidirectionalDecoder"

    one, left = saved("audio", 1)
    config = tiny_model("audio")
    both_ways(config)
    model = build_model(config, tokenizer.vocab_size)
    initialise(model, [one], tokenizer)
    after = model.state_dict()
    names = [name for name in left if name.startswith("decoder.")]
    for name in names:
        assert torch.equal(after[name.replace("decoder.", "decoder.left.")], left[name])
    two, both = saved("audio", 2, change=both_ways)
    model = build_model(tiny_model("audio"), tokenizer.vocab_size)
    assert initialise(model, [two], tokenizer) == len(model.state_dict())
    for name in names:
        theirs = both[name.replace("decoder.", "decoder.left.")]
        assert torch.equal(model.state_dict()[name], theirs)
