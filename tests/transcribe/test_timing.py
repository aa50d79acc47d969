"""Times by part: each is counted once, and nothing that is not recognition."""

import numpy as np
import pytest
import torch
from torch import nn

from speechattn import Transcriber
from speechattn.data.batches.batch import Item, collate
from speechattn.decoding import JointSearch
from speechattn.model.speech_model import Stream
from speechattn.transcribe import recogniser as recogniser_module
from speechattn.transcribe import timing
from speechattn.transcribe.timing import PARTS, PartTimes, profiled


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
        with times.of("encoder"):
            stream(torch.zeros(1, 1, 1), torch.ones(1))
            clock.now += 0.5  # fusion and CTC head
    with times.of("search"):
        clock.now += 1.0
    with times.of("alignment"):
        clock.now += 3.0
    with times.paused():
        stream(torch.zeros(1, 1, 1), torch.ones(1))
    times.input_seconds = 38.0
    assert set(times.seconds) == set(PARTS)
    assert times.seconds == {
        "load": 0.0, "frontend": 4.0, "encoder": 11.0, "search": 1.0, "alignment": 3.0,
    }  # fmt: skip
    assert times.factors()["all"] == pytest.approx(0.5)
    assert "real-time factor 0.5000" in str(times)


def test_all_of_recognition_is_counted(monkeypatch, tiny_model_dir):
    """What a Recogniser does with a batch, down to the CTC head and the times of tokens."""
    recogniser = Transcriber.from_pretrained(tiny_model_dir("audio")).recogniser
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    model = recogniser.model

    def later(module, name: str):
        call = getattr(module, name)

        def slow(*args, **given):
            clock.now += 1.0
            return call(*args, **given)

        monkeypatch.setattr(module, name, slow)

    later(model, "encode_streams")
    later(model, "ctc_log_probs")
    later(model.streams["audio"].frontend, "forward")
    later(JointSearch, "search")
    later(recogniser_module, "hypothesis_times")
    sounds = [np.zeros(samples, np.float32) for samples in (9000, 16000)]
    batch = collate([Item(str(i), "", [], sound) for i, sound in enumerate(sounds)])
    recogniser.recognise(batch)
    assert recogniser.times.seconds == {
        "load": 0.0, "frontend": 1.0, "encoder": 2.0, "search": 1.0, "alignment": 2.0,
    }  # fmt: skip
    assert sum(recogniser.times.seconds.values()) == clock.now


def test_profile_is_printed_only_if_wanted(capsys):
    for wanted in (False, True):
        with profiled(wanted):
            torch.ones(3, 3) @ torch.ones(3, 3)
        assert ("aten::mm" in capsys.readouterr().out) == wanted
