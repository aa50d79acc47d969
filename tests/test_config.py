"""Configuration: what is wrong is named, and nothing foreign is imported."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from speechattn.config import build, check_class_paths, check_sections, override, read_yaml, set_key
from speechattn.data.batches import DataOptions
from speechattn.data.crops.roi import RoiOptions
from speechattn.errors import ConfigError
from speechattn.losses import JointLoss
from speechattn.model.directory import build_model
from speechattn.training import TrainingOptions

PLUGIN = """
from pathlib import Path
from speechattn.frontends import Frontend

Path(__file__).with_name("imported").touch()


class Plugin(Frontend):
    def __init__(self, size: int = 4):
        super().__init__()
        self.output_size = size
        self.frame_shift = 0.01
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package outside ours; gives the file that tells whether it was imported."""
    package = tmp_path / "strangeplugin"
    package.mkdir()
    (package / "__init__.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield package / "imported"
    sys.modules.pop("strangeplugin", None)


def component(path: str, **arguments) -> dict:
    return {"class_path": path, "init_args": arguments}


# ------------------------------------------------------------------------------ foreign classes


@pytest.mark.parametrize(
    "value",
    [
        component("strangeplugin.Plugin"),
        component("strangeplugin.Plugin", size=20),
        "strangeplugin.Plugin",
        '{"class_path": "strangeplugin.Plugin"}',
        "class_path: strangeplugin.Plugin",
        '{"class\\u005fpath": "strangeplugin.Plugin"}',
        '"strangeplugin.Plugin"',
        component("strangeplugin"),
        {"class_path": ["strangeplugin.Plugin"]},
    ],
)
def test_a_plugin_is_not_imported(plugin, tiny_model, value):
    config = tiny_model("audio")
    config["audio"]["frontend"] = value
    with pytest.raises(ConfigError, match=r"model\.audio\.frontend"):
        build_model(config, 10)
    assert not plugin.exists()
    assert "strangeplugin" not in sys.modules


def test_a_plugin_under_a_dotted_key_is_not_imported(plugin, tiny_model):
    config = tiny_model("audio")
    config["audio.frontend.class_path"] = "strangeplugin.Plugin"
    with pytest.raises(ConfigError, match="strangeplugin"):
        build_model(config, 10)
    assert not plugin.exists()


def test_a_plugin_in_a_list_is_not_imported(plugin):
    with pytest.raises(ConfigError, match=r"data\.audio_transforms\[1\]"):
        build(
            DataOptions,
            {"audio_transforms": [component("speechattn.data.augment.CenterCrop"),
                                  "strangeplugin.Plugin"]},
            "data",
        )  # fmt: skip
    assert not plugin.exists()


def test_an_allowed_plugin_is_built(plugin, tiny_model):
    config = tiny_model("audio")
    config["audio"]["frontend"] = component("strangeplugin.Plugin", size=20)
    model = build_model(config, 10, allow=["strangeplugin"])
    assert type(model.streams["audio"].frontend).__name__ == "Plugin"
    assert plugin.exists()


def test_an_allowed_plugin_must_be_of_the_type(tiny_model):
    config = tiny_model("audio")
    config["audio"]["frontend"] = component("torch.nn.Linear", in_features=2, out_features=2)
    with pytest.raises(ConfigError, match="Linear"):
        build_model(config, 10, allow=["torch"])


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "torch.nn.Linear",
        "subprocess.Popen",
        "builtins.eval",
        "speechattn_evil.Plugin",
        "__main__.Plugin",
        "LogMelFbank",
    ],
)
def test_foreign_class_path(tiny_model, path):
    config = tiny_model("audio")
    config["audio"]["frontend"] = {"class_path": path}
    with pytest.raises(ConfigError, match=r"model\.audio\.frontend\.class_path.*" + path):
        build_model(config, 10)


@pytest.mark.parametrize(
    "path",
    [
        "speechattn.files.os.system",
        "speechattn.model.speech_model.nn.Linear",
        "speechattn.encoders.ConformerEncoder",
        "speechattn.model.directory.load_file",
    ],
)
def test_what_ours_imports_is_no_way_round(tiny_model, tmp_path, path):
    config = tiny_model("audio")
    target = tmp_path / "made"
    config["audio"]["frontend"] = component(path, command=f"touch {target}")
    with pytest.raises(ConfigError, match="not correspond to a subclass of Frontend"):
        build_model(config, 10)
    assert not target.exists()


def test_file_names_are_no_class_paths():
    for name in ("babble.wav", "/data/os.wav", "./os.wav", "a/b.c", ".5", "1.5", "os", "..", ""):
        check_class_paths({"noise": name, "more": [name]})


# ------------------------------------------------------------------------------ keys and types


def test_defaults():
    assert build(TrainingOptions, {}, "training") == TrainingOptions()


def test_values_are_read():
    found = build(
        TrainingOptions, {"lr": "1e-3", "betas": [0.8, 0.9], "schedule": "noam"}, "training"
    )
    assert found == TrainingOptions(lr=1e-3, betas=(0.8, 0.9), schedule="noam")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_epoch": 3}, "training.*max_epoch"),
        ({"max_epochs": "many"}, "training.*max_epochs"),
        ({"max_epochs": 2.5}, "training.*max_epochs"),
        ({"schedule": "step"}, "training.*schedule"),
        ({"betas": [0.1]}, "training.*betas"),
        (None, "training.*keys and values"),
        ([1], "training.*keys and values"),
        ("lr: 1", "training.*keys and values"),
    ],
)
def test_wrong_options(values, message):
    with pytest.raises(ConfigError, match=message):
        build(TrainingOptions, values, "training")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "audio.frontend.num_bin=80",
            "model.audio.frontend.init_args.num_bin: no such option of LogMelFbank; did you mean "
            "num_bins? Valid: num_bins, ",
        ),
        (
            "audio.frontend.num_bins=many",
            "model.audio.frontend.init_args.num_bins: a whole number is needed, not 'many'",
        ),
        ("sample_rat=1", "model.sample_rat: no such option; did you mean sample_rate? Valid: "),
        (
            "audio.encoder.attention={class_path: speechattn.attention.SoftmaxSelfAttention, "
            "init_args: {kv_head: 1}}",
            "model.audio.encoder.init_args.attention.init_args.kv_head: no such option of "
            "SoftmaxSelfAttention; did you mean kv_heads?",
        ),
        (
            "audio.encoder.attention=SoftmaxSelfAttentio",
            "model.audio.encoder.init_args.attention: SoftmaxSelfAttentio: no such class; did you "
            "mean SoftmaxSelfAttention?",
        ),
        (
            "audio.encoder.class_path=speechattn.encoders.ConformerEncode",
            "model.audio.encoder: ConformerEncode: no such class in speechattn.encoders; did you "
            "mean ConformerEncoder? Valid: ",
        ),
        ("audio.encoder=null", "model.audio: missing: encoder"),
        ("fusion={a: 1}", "model.fusion.a: no such option of MLPFusion. Valid: audio_size, "),
        (
            "audio.frontend={class_path: speechattn.frontends.LogMelFbank, init_arg: {}}",
            "model.audio.frontend.init_arg: no such key; did you mean init_args?",
        ),
    ],
)
def test_errors_name_the_key_and_the_nearest(tiny_model, change, message):
    config = tiny_model("audio")
    override(config, [change])
    with pytest.raises(ConfigError) as raised:
        build_model(config, 10)
    assert str(raised.value).startswith(message), raised.value
    assert "\n" not in str(raised.value) and "<class" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_epoch": 3}, "training.max_epoch: no such option; did you mean max_epochs? Valid: "),
        ({"max_epochs": 2.5}, "training.max_epochs: a whole number is needed, not 2.5"),
        ({"schedule": "noamm"}, "training.schedule: not 'noamm'; did you mean noam? Valid: cosine"),
        ({"lr": "fast"}, "training.lr: a number is needed, not 'fast'"),
    ],
)
def test_wrong_options_in_plain_words(values, message):
    with pytest.raises(ConfigError) as raised:
        build(TrainingOptions, values, "training")
    assert str(raised.value).startswith(message)


def test_what_a_constructor_refuses():
    with pytest.raises(ConfigError, match=r"roi.*RoiOptions\.size"):
        build(RoiOptions, {"size": -1}, "roi")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("audio.frontend.init_args.num_bin=80", "num_bin"),
        ("audio.frontend.init_args.num_bins=many", "num_bins"),
        ("audio.encoder.init_args.conv_kernel=4", "kernel must be odd"),
        ("audio.encoder.init_args.input_size=40", r"input_size is 40.*frontend gives 20"),
        ("audio.encoder.init_args.subsampling=conv2d2", r"frame_shift is 0\.04.*0\.02"),
        ("audio.encoder.class_path=speechattn.encoders.Nope", "Nope"),
        ("audio.encoder=null", "encoder"),
        ("audio=null", "audio"),
        ("decoder.init_args.width=15", "width 15"),
        ("decoder=speechattn.decoders.TransformerDecoder", "decoder"),
        ("vidoe={a: 1}", "vidoe"),
        ("crop_size=[1]", "crop_size"),
        ("sample_rate=16k", "sample_rate"),
    ],
)
def test_wrong_model(tiny_model, change, message):
    config = tiny_model("audio")
    override(config, [change])
    with pytest.raises(ConfigError, match=f"(?s){message}") as raised:
        build_model(config, 10)
    assert "Namespace(" not in str(raised.value)


def test_a_model_is_a_section():
    for config in (None, [], "audio"):
        with pytest.raises(ConfigError, match="model: "):
            build_model(config, 10)


def test_build_leaves_the_config_alone(tiny_model):
    config = tiny_model("av")
    before = repr(config)
    build_model(config, 10)
    assert repr(config) == before


def test_components_without_class_path_and_plain_classes():
    loss = build(JointLoss, {"ctc_weight": 0.5}, "loss")
    assert isinstance(loss, JointLoss) and loss.ctc_weight == 0.5

    @dataclass(frozen=True)
    class Options:
        path: Path = Path(".")

    assert build(Options, {"path": "a.b"}, "options").path == Path("a.b")


# ------------------------------------------------------------------------------ files, overrides


def test_read_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: {b: 1}\n词: 口\n", encoding="utf-8")
    assert read_yaml(path) == {"a": {"b": 1}, "词": "口"}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a: [1", "not YAML"), (b"- 1\n", "mapping"), (b"", "mapping"), (b"\xff\xfe\xfa", "YAML"),
     (b"a: !!python/object/apply:os.system ['true']", "not YAML"), (None, "cannot be read")],
)  # fmt: skip
def test_read_yaml_errors(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as raised:
        read_yaml(path)
    assert str(path) in str(raised.value)


def test_override():
    config = {"training": {"lr": 1.0}, "x": 3}
    override(config, ["training.lr=0.5", "training.betas=[0.1, 0.2]", "a.b.c=yes", " d =e=f"])
    assert config == {
        "training": {"lr": 0.5, "betas": [0.1, 0.2]}, "x": 3, "a": {"b": {"c": True}}, "d": "e=f"
    }  # fmt: skip


@pytest.mark.parametrize("assignment", ["training.lr", "x.y=1", "a=[1", "a={"])
def test_override_errors(assignment):
    with pytest.raises(ConfigError, match=r"training\.lr|x\.y|a="):
        override({"x": 3}, [assignment])


def test_set_key():
    config = {}
    set_key(config, "a.b", 1)
    set_key(config, "a.c", 2)
    assert config == {"a": {"b": 1, "c": 2}}


def test_set_key_in_a_component():
    search = component("JointSearch", beam_size=10)
    config = {"search": search, "other": {"part": "Greedy"}}
    override(config, ["search.beam_size=20", "search.init_args.nbest=2", "search.class_path=Beam"])
    assert config["search"] == component("Beam", beam_size=20, nbest=2)
    override(config, ["search.part.size=3", "other.part.size=4"])
    assert config["search"]["init_args"]["part"] == {"size": 3}
    assert config["other"] == {"part": component("Greedy", size=4)}
    override(config, ["search=Greedy"])
    assert config["search"] == "Greedy"


def test_misspelt_section():
    check_sections({"model": {}, "roi": {}}, ("model", "roi"))
    with pytest.raises(ConfigError, match="trainnig: no such section; did you mean training"):
        check_sections({"trainnig": {}}, ("training", "model"))
