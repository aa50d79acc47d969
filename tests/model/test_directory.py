"""The model directory: a round trip, and every way in which it can be broken."""

import json

import numpy as np
import pytest
import torch
import yaml

from speechattn.data.tokenizers import CharTokenizer
from speechattn.errors import ConfigError
from speechattn.model.directory import (
    build_model,
    load_model,
    read_config,
    read_meta,
    save_model_dir,
)

TOKENIZER = CharTokenizer.train(["ab cd ", "口 型"])


@pytest.fixture
def folder(tmp_path, tiny_model):
    """A model directory, with the model that is in it."""
    torch.manual_seed(3)
    config = {
        "model": tiny_model("av"),
        "search": {"class_path": "CtcBeamSearch"},
        "training": {"lr": 1.0},
    }
    model = build_model(config["model"], TOKENIZER.vocab_size).eval()
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2.0)
    save_model_dir(tmp_path / "m", config, model.state_dict(), TOKENIZER, {"corpus": "口"})
    return tmp_path / "m", model


def test_round_trip_gives_identical_numbers(folder):
    path, model = folder
    loaded = load_model(path)
    assert not loaded.training
    audio, video = torch.randn(2, 8000), torch.randint(0, 256, (2, 12, 1, 16, 16))
    lengths = torch.tensor([8000, 7000]), torch.tensor([12, 9])
    tokens, n = torch.tensor([[TOKENIZER.sos_eos_id, 2, 3]] * 2), torch.tensor([3, 2])
    with torch.inference_mode():
        for one, other in zip(
            model.encode(audio, lengths[0], video, lengths[1]),
            loaded.encode(audio, lengths[0], video, lengths[1]),
            strict=True,
        ):
            assert torch.equal(one, other)
        hidden, frames = loaded.encode(audio, lengths[0], video, lengths[1])
        assert torch.equal(model.ctc_log_probs(hidden), loaded.ctc_log_probs(hidden))
        assert torch.equal(
            model.decoder(tokens, n, hidden, frames), loaded.decoder(tokens, n, hidden, frames)
        )
    assert load_model(path).state_dict().keys() == model.state_dict().keys()


def test_what_is_in_it(folder):
    path, _ = folder
    assert sorted(f.name for f in path.iterdir()) == [
        "config.yaml", "meta.json", "model.safetensors", "tokenizer.json", "tokens.txt"
    ]  # fmt: skip
    assert read_config(path).keys() == {"model", "search"}
    meta = read_meta(path)
    assert (meta["corpus"], meta["vocab_size"]) == ("口", TOKENIZER.vocab_size)


def test_saving_again_replaces(folder, tiny_model):
    path, model = folder
    changed = {k: v + 1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_model_dir(path, {"model": tiny_model("av")}, changed, TOKENIZER, {})
    assert torch.equal(load_model(path).ctc.bias, model.ctc.bias + 1)
    assert not list(path.glob(".part*"))


def test_the_vocabulary_comes_from_the_tokenizer(tiny_model):
    config = tiny_model("audio")
    config["vocab_size"] = 3
    config["decoder"]["init_args"]["vocab_size"] = 4
    model = build_model(config, 11)
    assert model.ctc.out_features == model.decoder.vocab_size == 11
    config["decoder"] = config["decoder"]["init_args"]  # written without class_path
    assert build_model(config, 12).decoder.vocab_size == 12


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "tokens.txt"])
def test_missing_file(folder, name):
    path, _ = folder
    (path / name).unlink()
    with pytest.raises(ConfigError, match=name):
        load_model(path)


def test_no_directory(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        load_model(tmp_path / "nowhere")
    assert read_meta(tmp_path) == {}


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_weights(folder, keep):
    path, _ = folder
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        load_model(path)


def test_pickle_in_place_of_weights(folder):
    path, model = folder
    torch.save(model.state_dict(), path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        load_model(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (("decoder", "init_args", "linear_units"), 32, "size mismatch"),
        (("decoder", "init_args", "num_blocks"), 2, "Missing key"),
        (("decoder",), None, "Unexpected key"),
    ],
)
def test_weights_of_another_shape(folder, key, value, message):
    path, _ = folder
    config = read_config(path)
    section = config["model"]
    for name in key[:-1]:
        section = section[name]
    section[key[-1]] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=f"(?s)model.safetensors.*{message}"):
        load_model(path)


@pytest.mark.parametrize("model", [None, [], "x", {"audio": "os.system"}])
def test_nonsense_in_place_of_the_model(folder, model):
    path, _ = folder
    (path / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    with pytest.raises(ConfigError, match="model"):
        load_model(path)
    (path / "config.yaml").write_text("search: JointSearch\n")
    with pytest.raises(ConfigError, match="one section `model` is needed"):
        load_model(path)


def test_a_stranger_cannot_run_code(folder, tmp_path, monkeypatch):
    path, _ = folder
    (tmp_path / "strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    whole = read_config(path)
    for value in ({"class_path": "strange.Decoder"}, "strange.Decoder", "{class_path: strange.D}"):
        config = {**whole, "model": {**whole["model"], "decoder": value}}
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(ConfigError, match=r"model\.decoder"):
            load_model(path)
    (path / "config.yaml").write_text("model: !!python/object/apply:strange.run []\n")
    with pytest.raises(ConfigError, match="not YAML"):
        load_model(path)
    assert not (tmp_path / "ran").exists()


def test_meta_holds_plain_values(folder, tiny_model):
    path, model = folder
    meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    assert meta["speechattn"]
    assert np.isscalar(meta["vocab_size"])


def test_a_date_is_refused_by_its_key(tiny_model):
    config = yaml.safe_load(yaml.safe_dump(tiny_model("audio")) + "crop_size: 2024-01-01\n")
    with pytest.raises(ConfigError, match="crop_size"):
        build_model(config, 11)


def test_statistics_are_in_the_weights_and_no_file_is_named(tiny_model, tmp_path):
    """What a model directory names must not be opened, and it works where the file is not."""
    stats = tmp_path / "stats.npz"
    np.savez(stats, mean=np.arange(20.0), istd=np.full(20, 2.0))
    config = {"model": tiny_model("audio")}
    frontend = config["model"]["audio"]["frontend"]["init_args"]
    frontend.update(normalise="global", statistics=str(stats))
    model = build_model(config["model"], TOKENIZER.vocab_size)
    save_model_dir(tmp_path / "m", config, model.state_dict(), TOKENIZER, {})
    stats.unlink()
    assert "statistics" not in (tmp_path / "m" / "config.yaml").read_text()
    loaded = load_model(tmp_path / "m")
    cmvn = loaded.streams["audio"].frontend.cmvn
    assert cmvn.mean.tolist() == list(range(20)) and cmvn.istd.tolist() == [2.0] * 20
    assert frontend["statistics"] == str(stats)  # the caller's configuration is as it was
    (tmp_path / "m" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="`statistics` names a file"):
        load_model(tmp_path / "m")
