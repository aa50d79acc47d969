"""What commands share: devices, NAME=VALUE, noise; errors about packages and names."""

import pytest
import torch

import speechattn
from speechattn.cli import main
from speechattn.cli.common import Noise, check_device, named
from speechattn.errors import ConfigError, missing_extra, no_such


def test_devices_on_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert check_device("cpu") == "cpu"
    for name in ("cuda", "gpu", "cuda:1"):
        with pytest.raises(ConfigError, match=f"--device {name}: PyTorch finds no GPU here"):
            check_device(name)
    for name in ("tpu", "cuda:x", "cpu:"):
        with pytest.raises(ConfigError, match="choose cpu, cuda"):
            check_device(name)


def test_devices_on_a_machine_with_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert check_device("gpu") == check_device("cuda") == "cuda"
    assert check_device("gpu:0") == "cuda:0"
    with pytest.raises(ConfigError, match="only 1 GPU"):
        check_device("cuda:1")


def test_the_device_is_checked_before_anything_is_read(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["transcribe", "--model", "nowhere", "a.wav", "--device", "gpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("speechattn transcribe: --device gpu: ") and error.count("\n") == 1


def test_named():
    assert named(("a=b", "c=d=e"), "--model") == {"a": "b", "c": "d=e"}
    for wrong in ("a", "=b", "a="):
        with pytest.raises(ConfigError, match=f"--model {wrong}: write NAME=VALUE"):
            named((wrong,), "--model")
    with pytest.raises(ConfigError, match="a is given twice"):
        named(("a=b", "a=c"), "--model")


def test_noise(tiny_corpus, tmp_path):
    assert Noise().load() is None
    transform = Noise(noise=tiny_corpus.folder / "noise.wav", snr=5.0, noise_part=(0.5, 1.0)).load()
    assert transform.snr_db == (5.0, 5.0) and transform.part == (0.5, 1.0)
    with pytest.raises(ConfigError, match="no such file"):
        Noise(noise=tmp_path / "gone.wav").load()


def test_both_ways_to_install_an_extra():
    text = str(missing_extra("onnx", "onnxruntime"))
    assert text.startswith("onnxruntime is not installed")
    assert "pip install 'speechattn[onnx]'" in text and "pip install '.[onnx]'" in text


def test_unknown_names():
    assert no_such("option", "nam", ["name", "size"]) == (
        "no such option; did you mean name? Valid: name, size"
    )
    assert no_such("option", "xyz", ["name"]) == "no such option. Valid: name"


def test_the_package_shows_its_public_names():
    assert dir(speechattn) == sorted(speechattn.__all__)
