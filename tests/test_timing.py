"""Times by part: each is counted once, and nothing that is not recognition."""

import time

import pytest
import torch
from torch import nn

from speechattn.model import Stream
from speechattn.timing import PARTS, PartTimes, profiled


class Slow(nn.Module):
    """Takes its time."""

    input_size = output_size = 1

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def forward(self, x, lengths):
        time.sleep(self.seconds)
        return x, lengths

    def encode(self, x, lengths, head=None):
        return self.forward(x, lengths)


def test_parts_are_told_apart():
    stream = Stream(Slow(0.02), Slow(0.05))
    times = PartTimes(nn.ModuleList([stream]))
    for _ in range(2):
        stream(torch.zeros(1, 1, 1), torch.ones(1))
    with times.of("search"):
        time.sleep(0.01)
    with times.paused():
        stream(torch.zeros(1, 1, 1), torch.ones(1))
    times.input_seconds = 2.0
    assert set(times.seconds) == set(PARTS)
    # At least what was slept, and less than it would be if another part were counted in.
    assert 0.04 <= times.seconds["frontend"] < 0.1 <= times.seconds["encoder"] < 0.14
    assert 0.01 <= times.seconds["search"] < 0.05 and times.seconds["load"] == 0
    factors = times.factors()
    assert factors["all"] == pytest.approx(sum(times.seconds.values()) / 2)
    assert f"real-time factor {factors['all']:.4f}" in str(times)


def test_profile_is_printed_only_if_wanted(capsys):
    for wanted in (False, True):
        with profiled(wanted):
            torch.ones(3, 3) @ torch.ones(3, 3)
        assert ("aten::mm" in capsys.readouterr().out) == wanted
