"""Weights taken over from trained models."""

import pytest
import torch
import yaml

from speechattn.data.tokenizer import CharTokenizer, Tokenizer
from speechattn.errors import ConfigError
from speechattn.model_dir import build_model, save_model_dir
from speechattn.training.initialise import initialise


@pytest.fixture
def tokenizer(tiny_corpus):
    return Tokenizer.load(tiny_corpus.folder / "tokens")


@pytest.fixture
def saved(tiny_model, tokenizer, tmp_path):
    """A function of modality and seed that writes a model directory and gives its weights too."""

    def make(modality: str, seed: int, tokens: Tokenizer = tokenizer, **changes):
        torch.manual_seed(seed)
        config = yaml.safe_load(yaml.safe_dump(tiny_model(modality)))
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


def test_other_tokens_renew_heads_and_decoder(saved, tiny_model, tokenizer):
    other = CharTokenizer.train(["quite another text"])
    folder, given = saved("audio", 1, other)
    model = build_model(tiny_model("audio"), tokenizer.vocab_size)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    initialise(model, [folder], tokenizer)
    for key, value in model.state_dict().items():
        kept = given if key.startswith("streams.") else before
        assert torch.equal(value, kept[key]), key


def test_nothing_to_give(saved, tiny_model, tokenizer):
    folder, _ = saved("video", 1)
    other = CharTokenizer.train(["quite another text"])
    model = build_model(tiny_model("audio"), other.vocab_size)
    with pytest.raises(ConfigError, match="nothing in it"):
        initialise(model, [folder], other)


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
