"""The mechanisms of `speechattn.attention` and their settings, found from the code.

Legend: T frames, D width, H heads.
"""

import inspect
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from speechattn import attention
from speechattn.attention import (
    CrossAttention,
    SelfAttention,
    SoftmaxCrossAttention,
    SoftmaxSelfAttention,
    SoftmaxTokenAttention,
    TokenAttention,
)

WIDTH, HEADS = 256, 4
Place = Literal["encoder", "tokens", "memory"]
# Where a mechanism goes, and what stands there without one.
PLACES: dict[Place, tuple[type[nn.Module], type[nn.Module]]] = {
    "encoder": (SelfAttention, SoftmaxSelfAttention),
    "tokens": (TokenAttention, SoftmaxTokenAttention),
    "memory": (CrossAttention, SoftmaxCrossAttention),
}
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")
COMPLEXITY = re.compile(r"\bO\([^()]*(?:\([^()]*\)[^()]*)*\)")

# Settings of one class that are mechanisms of their own: options, paper. What is not named here is
# measured with its defaults.
SETTINGS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "SoftmaxSelfAttention": [
        ({"positions": "rotary"}, "2104.09864"),
        ({"positions": "alibi"}, "2108.12409"),
        ({"positions": "none"}, "2501.18795"),
        ({"kv_heads": 2}, "2305.13245"),
        ({"kv_heads": 1}, "1911.02150"),
        ({"query_heads": 2}, "2510.01817"),
        ({"normalise": True}, "2010.04245"),
        ({"gate": "head"}, "2505.06708"),
        ({"gate": "channel"}, "2505.06708"),
    ],
    "LocalSelfAttention": [
        ({"window": 128}, "2504.16922"),
        ({"window": 128, "stride": 128}, "2504.16922"),
        ({"window": 32, "dilation": 4}, "2209.15001"),
        ({"window": 128, "sink": True}, "2309.17453"),
    ],
    "SoftmaxTokenAttention": [({}, "1706.03762"), ({"kv_heads": 1}, "1911.02150")],
    "SoftmaxCrossAttention": [({}, "1706.03762"), ({"kv_heads": 1}, "1911.02150")],
}


@dataclass(frozen=True)
class Mechanism:
    """A class and its options.

    Attributes:
        kind: name of the class in `speechattn.attention`.
        place: where it goes.
        options: constructor arguments beyond width, heads and dropout.
        paper: arXiv id; empty where the docstrings name none.
    """

    kind: str
    place: Place
    options: dict[str, Any] = field(default_factory=dict)
    paper: str = ""

    def __str__(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.kind}({settings})" if settings else self.kind

    @property
    def slug(self) -> str:
        """For names of files."""
        return "-".join([self.kind, *(f"{k}_{v}" for k, v in self.options.items())])

    @property
    def type(self) -> type[nn.Module]:
        return getattr(attention, self.kind)

    def make(self, width: int = WIDTH, heads: int = HEADS) -> nn.Module:
        """With a memory of the same width, where it has one."""
        sizes = (width, width, heads) if self.place == "memory" else (width, heads)
        return self.type(*sizes, **self.options)

    @property
    def streams(self) -> bool:
        """Whether the class or one above it, but not the contract, has a `step`."""
        return self.type.step not in (None, PLACES[self.place][0].step)

    @property
    def patterns(self) -> tuple[str, ...]:
        return self.type.patterns

    @property
    def complexity(self) -> str:
        """What the docstring of its file, or its own, says; empty where it says nothing."""
        found = COMPLEXITY.search(self._text())
        return found.group() if found else ""

    def parameters_added(self, width: int = WIDTH, heads: int = HEADS) -> int:
        """Against plain softmax attention at the same place, of the same width."""
        sizes = (width, width, heads) if self.place == "memory" else (width, heads)
        plain = PLACES[self.place][1](*sizes)
        return count(self.make(width, heads)) - count(plain)

    def _text(self) -> str:
        module = inspect.getmodule(self.type).__doc__ or ""
        return module + "\n" + (self.type.__doc__ or "")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def mechanisms(place: Place | None = None) -> list[Mechanism]:
    """All that `speechattn.attention` exports, by place and name; of one place if it is given."""
    found = []
    for here, (contract, _) in PLACES.items():
        if place not in (None, here):
            continue
        for name in sorted(attention.__all__):
            kind = getattr(attention, name)
            if not (isinstance(kind, type) and issubclass(kind, contract)) or kind is contract:
                continue
            if inspect.isabstract(kind):
                continue
            plain = Mechanism(name, here)
            paper = ARXIV.search(plain._text())
            default = [({}, paper.group() if paper else "")]
            found += [Mechanism(name, here, *setting) for setting in SETTINGS.get(name, default)]
    return found
