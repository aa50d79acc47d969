"""Times by part: each is counted once, and nothing that is not recognition."""

import pytest
import torch
from torch import nn

from speechattn.inference import timing
from speechattn.inference.timing import PARTS, PartTimes, profiled
from speechattn.model import Stream


class Clock:
    """Goes on only where it is told to: a busy machine changes nothing."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow(nn.Module):
    """Takes its time."""

    input_size = output_size = 1

    def __init__(self, clock: Clock, seconds: float):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x, lengths):
        self.clock.now += self.seconds
        return x, lengths

    def encode(self, x, lengths, head=None):
        return self.forward(x, lengths)


def test_parts_are_told_apart(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    stream = Stream(Slow(clock, 2.0), Slow(clock, 5.0))
    times = PartTimes(nn.ModuleList([stream]))
    for _ in range(2):
        stream(torch.zeros(1, 1, 1), torch.ones(1))
    with times.of("search"):
        clock.now += 1.0
    with times.paused():
        stream(torch.zeros(1, 1, 1), torch.ones(1))
    times.input_seconds = 30.0
    assert set(times.seconds) == set(PARTS)
    assert times.seconds == {"load": 0.0, "frontend": 4.0, "encoder": 10.0, "search": 1.0}
    assert times.factors()["all"] == pytest.approx(0.5)
    assert "real-time factor 0.5000" in str(times)


def test_profile_is_printed_only_if_wanted(capsys):
    for wanted in (False, True):
        with profiled(wanted):
            torch.ones(3, 3) @ torch.ones(3, 3)
        assert ("aten::mm" in capsys.readouterr().out) == wanted
