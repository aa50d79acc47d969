"""Ensembles: what they agree in, what they read, and their model directory."""

import json
import shutil

import pytest
import torch
import yaml

from speechattn import Transcriber
from speechattn.decoding import CtcGreedySearch, JointSearch
from speechattn.errors import ConfigError
from speechattn.model.directory import build_ensemble, build_model, load_model
from speechattn.model.ensemble import Ensemble
from speechattn.training.initialise import initialise
from speechattn.transcribe.combine import read_models, save_ensemble


@pytest.fixture
def folders(tiny_model_dir):
    return {"audio": tiny_model_dir("audio"), "video": tiny_model_dir("video")}


@pytest.fixture
def saved(folders, tmp_path):
    """The directory of an ensemble of sound and lips."""
    transcriber = read_models(folders)
    transcriber.recogniser.model.weights = {"audio": 0.3, "video": 0.7}
    save_ensemble(transcriber, folders, tmp_path / "both", {"note": "x"})
    return tmp_path / "both"


def inputs(b: int = 3):
    torch.manual_seed(0)
    return (
        0.1 * torch.randn(b, 16000),
        torch.tensor([16000, 9600, 12800])[:b],
        torch.randint(0, 256, (b, 25, 1, 16, 16)),
        torch.tensor([25, 15, 20])[:b],
    )


@torch.inference_mode()
def test_one_model_alone_and_twice(folders):
    model = load_model(folders["audio"])
    options = JointSearch(beam_size=4, nbest=3)
    audio, audio_lengths, *_ = inputs()
    alone = options.search(model.outputs(audio, audio_lengths))
    for models in ({"one": model}, {"one": model, "two": load_model(folders["audio"])}):
        ensemble = Ensemble(models, dict.fromkeys(models, 2.0))
        found = options.search(ensemble.outputs(audio, audio_lengths))
        for a, b in zip(alone, found, strict=True):
            assert [h.tokens for h in a] == [h.tokens for h in b]
            assert [h.score for h in a] == pytest.approx([h.score for h in b], abs=1e-4)
        assert set(found[0][0].scores) == {
            "length", *(f"{part}.{name}" for part in ("decoder", "ctc") for name in models)
        }  # fmt: skip


@torch.inference_mode()
def test_a_batch_gives_what_its_utterances_give(saved):
    model, options = load_model(saved), JointSearch(beam_size=4)
    audio, audio_lengths, video, video_lengths = inputs()
    together = options.search(model.outputs(audio, audio_lengths, video, video_lengths))
    for i in range(3):
        n, t = int(audio_lengths[i]), int(video_lengths[i])
        one = slice(i, i + 1)
        (alone,) = options.search(
            model.outputs(audio[one, :n], audio_lengths[one], video[one, :t], video_lengths[one])
        )
        assert [h.tokens for h in alone] == [h.tokens for h in together[i]]
        assert alone[0].score == pytest.approx(together[i][0].score, abs=1e-4)


def test_directory(saved, folders):
    model = load_model(saved)
    assert isinstance(model, Ensemble) and not model.training
    assert model.weights == pytest.approx({"audio": 0.3, "video": 0.7})
    assert model.modalities == ("audio", "video")
    for name, folder in folders.items():
        for key, value in load_model(folder).state_dict().items():
            assert torch.equal(model.models[name].state_dict()[key], value)
    meta = json.loads((saved / "meta.json").read_text())
    assert meta["parameters"] == sum(load_model(f).num_parameters() for f in folders.values())
    assert (meta["note"], meta["modalities"]) == ("x", ["audio", "video"])
    transcriber = Transcriber.from_pretrained(saved)
    first = Transcriber.from_pretrained(folders["audio"])
    assert transcriber.recogniser.search == first.recogniser.search
    with pytest.raises(ConfigError, match="ensemble already"):
        read_models({"a": saved})
    with pytest.raises(ConfigError, match="no section `model`"):
        initialise(model.models["audio"], [saved], transcriber.recogniser.tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e["weights"].pop("audio"), "weights are of video"),
        (lambda e: e["weights"].update(audio=0), "weights.audio has to be above 0"),
        (lambda e: e["weights"].update(audio="x"), "weights.audio has to be a number"),
        (lambda e: e["weights"].update(audio=float("nan")), "has to be above 0"),
        (lambda e: e.update(speed=1), "speed: no such section"),
        (lambda e: e.pop("models"), "`models` and `weights` are needed"),
        (lambda e: e["models"].update(audio=3), "ensemble.models.audio: a section"),
        (lambda e: e["models"]["audio"].update(wings=2), "(?s)ensemble.models.audio.*wings"),
        (
            lambda e: e["models"]["audio"]["decoder"].update(class_path="os.system"),
            r"ensemble.models.audio.decoder.class_path: 'os.system' is not part",
        ),
        (lambda e: e.update(models={}, weights={}), "needs models"),
        (lambda e: [e[k].update({"a.b": e[k].pop("audio")}) for k in e], "need other names"),
        (lambda e: e["models"]["audio"].update(sample_rate=8000), "sample_rate"),
    ],
)
def test_what_a_directory_may_not_say(saved, change, message):
    config = yaml.safe_load((saved / "config.yaml").read_text())
    change(config["ensemble"])
    (saved / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=message):
        load_model(saved)


def test_one_model_or_an_ensemble(saved):
    config = yaml.safe_load((saved / "config.yaml").read_text())
    config["model"] = config["ensemble"]["models"]["audio"]
    (saved / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="one section `model`"):
        load_model(saved)


def test_models_share_what_they_take(tiny_model):
    small, large = tiny_model("video"), tiny_model("video")
    large["crop_size"] = 24
    weights = {"small": 1.0, "large": 1.0}
    sections = {"models": {"small": small, "large": large}, "weights": weights}
    with pytest.raises(ConfigError, match="share their crop_size: it is 16 in small, 24 in large"):
        build_ensemble(sections, 9)
    # Who does not see has no say.
    deaf = {"see": large, "hear": tiny_model("audio")}
    ensemble = build_ensemble({"models": deaf, "weights": {"see": 1, "hear": 3}}, 9)
    assert (ensemble.crop_size, ensemble.sample_rate) == (24, 16000)
    assert ensemble.weights == {"see": 0.25, "hear": 0.75}


def test_long_files_are_cut_as_the_first_model_says(folders, tmp_path):
    first = shutil.copytree(folders["audio"], tmp_path / "first")
    config = yaml.safe_load((first / "config.yaml").read_text())
    config["long_form"] = {"window_seconds": 4.0, "overlap_seconds": 1.5, "at_silence": True}
    (first / "config.yaml").write_text(yaml.safe_dump(config))
    models = {"audio": first, "video": folders["video"]}
    save_ensemble(read_models(models), models, tmp_path / "both")
    found = Transcriber.from_pretrained(tmp_path / "both").long_form
    assert (found.window_seconds, found.overlap_seconds, found.at_silence) == (4.0, 1.5, True)


def test_searches_that_need_one_model(saved):
    with pytest.raises(ConfigError, match="CtcGreedySearch reads one model"):
        Transcriber.from_pretrained(saved, search=CtcGreedySearch())
    with pytest.raises(ConfigError, match="right-to-left"):
        Transcriber.from_pretrained(saved, search=JointSearch(reverse_weight=0.5))


def test_units_and_mouths_agree(folders, tiny_model, tmp_path):
    from speechattn.data.tokenizers import CharTokenizer
    from speechattn.model.directory import save_model_dir

    tokenizer = CharTokenizer.train(["xyz"])
    model = build_model(tiny_model("audio"), tokenizer.vocab_size)
    save_model_dir(
        tmp_path / "x", {"model": tiny_model("audio")}, model.state_dict(), tokenizer, {}
    )
    with pytest.raises(ConfigError, match="have other units"):
        read_models({**folders, "x": tmp_path / "x"})
