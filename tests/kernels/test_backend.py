import pytest
import torch

from speechattn.kernels import backend
from speechattn.kernels.backend import choose


@pytest.fixture(autouse=True)
def no_memory(monkeypatch):
    """A device is asked once a process; here its answers change."""
    monkeypatch.delenv("SPEECHATTN_KERNELS", raising=False)
    backend._fit_gpu.cache_clear()
    yield
    backend._fit_gpu.cache_clear()


def gpu(monkeypatch, capability=(8, 0), installed=True):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(backend, "_installed", lambda: installed)


@pytest.mark.parametrize("name", ["attention", "relative_attention"])
def test_gpu(name, monkeypatch):
    gpu(monkeypatch)
    assert choose("cuda", name) == choose(torch.device("cuda", 1), name) == "triton"
    assert choose("cpu", name) == choose("cuda") == choose("cuda", "strided_attention") == "torch"


@pytest.mark.parametrize("change", [{"capability": (7, 5)}, {"installed": False}], ids=str)
def test_gpu_without_what_kernels_need(change, monkeypatch):
    gpu(monkeypatch, **change)
    assert choose("cuda", "attention") == "torch"


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose("cuda", "attention") == "torch"


def test_heads_without_a_kernel(monkeypatch):
    gpu(monkeypatch)
    heads = torch.zeros(2, 3, 4, 128)
    assert choose("cuda", "relative_attention", heads) == "triton"
    assert choose("cuda", "relative_attention", heads.bfloat16()) == "triton"
    assert choose("cuda", "relative_attention", heads.double()) == "torch"
    assert choose("cuda", "relative_attention", torch.zeros(1, 129)) == "torch"


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_forced(name, monkeypatch):
    monkeypatch.setenv("SPEECHATTN_KERNELS", name)
    gpu(monkeypatch)
    assert choose("cpu") == choose("cuda") == choose("cuda", "attention") == name


def test_forced_triton(monkeypatch):
    monkeypatch.setenv("SPEECHATTN_KERNELS", "triton")
    monkeypatch.setattr(backend, "_installed", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1"):
        choose("cpu", "attention")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("cpu", "attention") == "triton"
    assert choose("cpu", "strided_attention") == "torch"
    assert choose("cpu", "attention", torch.zeros(1, 8).double()) == "torch"
    monkeypatch.setattr(backend, "_installed", lambda: False)
    with pytest.raises(ValueError, match="not installed"):
        choose("cuda", "attention")


def test_not_there(monkeypatch):
    monkeypatch.setenv("SPEECHATTN_KERNELS", "cuda")
    with pytest.raises(ValueError, match="cuda: choose one of reference, torch, triton"):
        choose("cuda")
