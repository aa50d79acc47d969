import pytest
import torch

from speechattn.kernels.backend import choose


def test_by_device(monkeypatch):
    monkeypatch.delenv("SPEECHATTN_KERNELS", raising=False)
    assert choose("cpu") == choose(torch.device("cuda", 1)) == "torch"


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_forced(name, monkeypatch):
    monkeypatch.setenv("SPEECHATTN_KERNELS", name)
    assert choose("cpu") == choose("cuda") == name


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_not_there(name, monkeypatch):
    monkeypatch.setenv("SPEECHATTN_KERNELS", name)
    with pytest.raises(ValueError, match=f"{name}: choose one of reference, torch"):
        choose("cuda")
