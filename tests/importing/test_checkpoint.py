"""Reading a stranger's checkpoint, and what does not fit it."""

import contextlib
import os
import pickle
from collections import OrderedDict
from random import Random

import pytest
import torch
from torch import nn

from speechattn.errors import ConfigError
from speechattn.importing.checkpoint import MAX_LISTED, fit, read_checkpoint


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def save(path, value):
    torch.save(value, path)
    return path


@pytest.mark.parametrize("form", ["zip", "pickle"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_malicious_pickle_is_refused(tmp_path, form):
    mark, path = tmp_path / "ran", tmp_path / "model.pth"
    value = {"weight": torch.zeros(1), "x": Malicious(mark)}
    if form == "zip":
        torch.save(value, path)
    else:
        path.write_bytes(pickle.dumps(value))
    with pytest.raises(ConfigError, match=r"(?s)model\.pth: .*not read|cannot be read"):
        read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizers": [{"state": {}}]},
        lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 3},
    ],
    ids=["weights", "espnet", "lightning"],
)
def test_where_weights_are(tmp_path, wrap):
    state = OrderedDict(a=torch.arange(3.0), b=torch.ones(2, 2))
    found = read_checkpoint(save(tmp_path / "m.pth", wrap(state)))
    assert list(found) == ["a", "b"]
    assert torch.equal(found["a"], state["a"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "no weights by their names"),
        ({}, "no weights by their names"),
        ({"a": torch.ones(1), "b": 3}, r"1 value\(s\) are no tensor: b"),
    ],
)
def test_no_weights(tmp_path, value, message):
    with pytest.raises(ConfigError, match=message):
        read_checkpoint(save(tmp_path / "m.pth", value))


def test_broken_files(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_checkpoint(tmp_path / "none.pth")
    for name, data in (("a.pth", b""), ("b.pth", b"no checkpoint"), ("c.safetensors", b"x" * 20)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=name):
            read_checkpoint(tmp_path / name)


def fitted(state, model=None):
    model = model or nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    fit(model, state, {name.removeprefix("x."): (name,) for name in state}, "m.pth")
    return model


def whole():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return {f"x.{name}": value for name, value in model.state_dict().items()}


def test_fits():
    state = whole()
    loaded = fitted(state).state_dict()
    assert all(torch.equal(loaded[name.removeprefix("x.")], state[name]) for name in state)


def test_batch_counts_may_be_missing():
    state = whole()
    del state["x.1.num_batches_tracked"]
    fitted(state)


def test_unknown_missing_and_shapes_are_listed_together():
    state = whole()
    del state["x.1.running_mean"], state["x.0.bias"]
    state["x.2.weight"] = torch.ones(1)
    state["x.0.weight"] = torch.ones(2, 4)
    with pytest.raises(ConfigError) as error:
        fitted(state)
    message = str(error.value)
    assert "1 weight(s) in it have no place in the model: x.2.weight" in message
    assert "by our names, are not in it: 0.bias, 1.running_mean" in message
    assert "x.0.weight is (2, 4), the model's 0.weight (2, 3)" in message


def test_long_lists_are_counted():
    state = {**whole(), **{f"x.extra{i:03}": torch.ones(1) for i in range(50)}}
    with pytest.raises(ConfigError) as error:
        fitted(state)
    message = str(error.value)
    assert "50 weight(s) in it have" in message
    assert f"and {50 - MAX_LISTED} more" in message
    assert message.count("extra") == MAX_LISTED


def test_damaged_files(tmp_path):
    """A byte here and there, in either of torch's formats: an error of ours, or weights."""
    random = Random(0)
    path = tmp_path / "m.pth"
    for zipped in (True, False):
        torch.save({"a": torch.ones(3), "b.c": torch.zeros(2, 2)}, path,
                   _use_new_zipfile_serialization=zipped)  # fmt: skip
        whole = path.read_bytes()
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(random.randint(1, 3)):
                damaged[random.randrange(min(len(whole), 400))] = random.randrange(256)
            path.write_bytes(damaged)
            with contextlib.suppress(ConfigError):
                read_checkpoint(path)
