"""Where the time of recognition goes: reading, frontend, encoder, search, times of tokens."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from speechattn.model.speech_model import Stream

# The encoder's is all of a model but its frontends and decoder: fusion and CTC head too.
PARTS = ("load", "frontend", "encoder", "search", "alignment")


class PartTimes:
    """Seconds that each part of a model took, and the seconds of input that they were for.

    Args:
        model: its frontends are watched from here on.

    Attributes:
        seconds: by part.
        input_seconds: of what was recognised.
    """

    def __init__(self, model: nn.Module):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.input_seconds = 0.0
        self._begun: list[float] = []
        self._model = model
        for module in model.modules():
            frontend = module.frontend if isinstance(module, Stream) else None
            # Of exported graphs that see, the frontend is what stayed outside.
            frontend = getattr(module, "frontend", None) if frontend is None else frontend
            if isinstance(frontend, nn.Module):
                frontend.register_forward_pre_hook(lambda *_: self._begun.append(self._now()))
                frontend.register_forward_hook(lambda *_: self._end())

    def _end(self) -> None:
        self.seconds["frontend"] += self._now() - self._begun.pop()

    def _now(self) -> float:
        """Return the time in seconds, once all that was begun on a GPU is done."""
        weight = next(self._model.parameters(), None)
        if weight is not None and weight.device.type == "cuda":
            torch.cuda.synchronize(weight.device)
        return time.perf_counter()

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add what happens inside to a part, less what frontends take of it."""
        begun, inner = self._now(), self.seconds["frontend"]
        yield
        inner = self.seconds["frontend"] - inner
        self.seconds[part] += self._now() - begun - inner

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing of what happens inside."""
        before = dict(self.seconds)
        yield
        self.seconds = before

    def factors(self) -> dict[str, float]:
        """Return the real-time factor of each part and of all: seconds for a second of input."""
        total = {**self.seconds, "all": sum(self.seconds.values())}
        return {name: value / max(self.input_seconds, 1e-9) for name, value in total.items()}

    def __str__(self) -> str:
        factors = self.factors()
        parts = ", ".join(f"{name} {factors[name]:.4f}" for name in PARTS)
        return f"real-time factor {factors['all']:.4f} ({parts})"


@contextmanager
def profiled(wanted: bool, rows: int = 20) -> Iterator[None]:
    """Print the operators that took the most time inside, if wanted.

    Each call of an operator is remembered until the end: for minutes of input, not for hours.
    """
    if not wanted:
        yield
        return
    activities, column = [ProfilerActivity.CPU], "self_cpu_time_total"
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        column = "self_device_time_total"
    with profile(activities=activities) as profiler:
        yield
    table = profiler.key_averages().table(sort_by=column, row_limit=rows, max_name_column_width=40)
    print(table)
