"""Every configuration under conf/ makes a model, of the published size where one is published."""

from pathlib import Path

import pytest
import torch

from speechattn.config import build, read_yaml
from speechattn.data.batches import DataOptions
from speechattn.decoding.config import search_of
from speechattn.losses import JointLoss
from speechattn.model.directory import build_model
from speechattn.training.options import TrainingOptions

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(path.name for path in CONF.glob("*.yaml"))

# Units with blank, unknown and sos/eos; then the published size in millions, as it was rounded.
# ESPnet's figures count what is trained, the CTC head and the output layer included.
PUBLISHED = {
    "aishell_conformer.yaml": (4233, "46.25"),
    "aishell_e_branchformer.yaml": (4233, "37.88"),
    "cnvsrc2024_baseline.yaml": (4470, "284.3"),
}
# Not published; here so that a change of ours is seen.
OURS = {
    "avsr_audio.yaml": (41, "45.16"),
    "avsr_av.yaml": (41, "89.75"),
    "avsr_video.yaml": (41, "52.49"),
    "cnvsrc2023_baseline.yaml": (5906, "252.36"),
    "efficient_conformer_ctc_13m.yaml": (256, "13.28"),
    # 10.83 M as published, without the CTC head that every model has here
    "efficient_conformer_transducer_11m.yaml": (1000, "11.03"),
    "npu_aslp2023.yaml": (4470, "47.54"),
    "npu_aslp2024.yaml": (4470, "54.67"),
}
SIZES = {**PUBLISHED, **OURS}


def make(name: str, vocab_size: int):
    with torch.device("meta"):  # sizes without numbers: no second is spent on random weights
        return build_model(read_yaml(CONF / name)["model"], vocab_size)


@pytest.mark.parametrize("name", FILES)
def test_size(name):
    vocab_size, size = SIZES[name]
    millions = make(name, vocab_size).num_parameters() / 1e6
    digits = len(size.partition(".")[2])
    assert f"{millions:.{digits}f}" == size


@pytest.mark.parametrize("name", FILES)
def test_other_sections(name):
    config = read_yaml(CONF / name)
    assert set(config) <= {"model", "loss", "data", "training", "search", "roi"}
    build(JointLoss, config["loss"], "loss")
    build(TrainingOptions, config["training"], "training")
    search_of(config)
    build(DataOptions, config["data"], "data")


def test_efficient_conformer_transducer_is_as_published():
    model = make("efficient_conformer_transducer_11m.yaml", 1000)
    size = model.num_parameters() - sum(p.numel() for p in model.ctc.parameters())
    assert size == 10_826_640
    assert model.transducer.predictor.embedding.padding_idx == 0


def test_sizes_are_of_files():
    assert set(SIZES) == set(FILES)


def test_npu_aslp_years_are_one_step_apart():
    """Plain or Enhanced ResNet3D, one or two decoders, and the weights that go with the second."""
    old, new = (read_yaml(CONF / f"npu_aslp{year}.yaml") for year in (2023, 2024))
    assert different(old, new) == {
        "model.video.frontend.class_path",
        "model.video.frontend.init_args",
        "model.decoder.class_path",
        "model.decoder.init_args.reverse_blocks",
        "loss.reverse_weight",
        "search.init_args.reverse_weight",
    }


def test_avsr_streams_are_the_same():
    audio, video, both = (
        read_yaml(CONF / f"avsr_{x}.yaml")["model"] for x in ("audio", "video", "av")
    )
    assert both["audio"] == audio["audio"]
    assert both["video"] == video["video"]
    assert both["decoder"] == audio["decoder"] == video["decoder"]


def different(a, b, key=""):
    """Keys whose values differ; an `init_args` of another class is one key."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return set() if a == b else {key}
    if key.endswith("frontend.init_args"):
        return {key} if a != b else set()
    found = set()
    for name in a.keys() | b.keys():
        found |= different(a.get(name), b.get(name), f"{key}.{name}" if key else name)
    return found
