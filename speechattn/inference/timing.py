"""Where the time of recognition goes: reading, frontend, encoder, search."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.profiler import ProfilerActivity, profile

from speechattn.model import Stream

PARTS = ("load", "frontend", "encoder", "search")


class PartTimes:
    """Seconds that each part of a model took, and the seconds of input that they were for.

    Args:
        model: its streams are watched from here on.

    Attributes:
        seconds: by part.
        input_seconds: of what was recognised.
    """

    def __init__(self, model: nn.Module):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.input_seconds = 0.0
        self._begun: list[float] = []
        for module in model.modules():
            if isinstance(module, Stream):
                # A stream is its frontend and then its encoder.
                self._watch(module.frontend, "frontend")
                self._watch(module, "encoder", without="frontend")

    def _watch(self, module: nn.Module, part: str, without: str | None = None) -> None:
        def before(*_) -> None:
            inner = self.seconds[without] if without else 0.0
            self._begun.append(time.perf_counter() - inner)

        def after(*_) -> None:
            inner = self.seconds[without] if without else 0.0
            self.seconds[part] += time.perf_counter() - inner - self._begun.pop()

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Adds what happens inside to a part."""
        begun = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Counts nothing of what happens inside."""
        before = dict(self.seconds)
        yield
        self.seconds = before

    def factors(self) -> dict[str, float]:
        """The real-time factor of each part and of all: seconds for a second of input."""
        total = {**self.seconds, "all": sum(self.seconds.values())}
        return {name: value / max(self.input_seconds, 1e-9) for name, value in total.items()}

    def __str__(self) -> str:
        factors = self.factors()
        parts = ", ".join(f"{name} {factors[name]:.4f}" for name in PARTS)
        return f"real-time factor {factors['all']:.4f} ({parts})"


@contextmanager
def profiled(wanted: bool, rows: int = 20) -> Iterator[None]:
    """Prints the operators that took the most time inside, if wanted."""
    if not wanted:
        yield
        return
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        yield
    table = profiler.key_averages().table(
        sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=40
    )
    print(table)
