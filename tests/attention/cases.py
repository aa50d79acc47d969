"""Every mechanism of self-attention and its settings, for the conformance suite: a line each.

`plain` are options with which the mechanism is softmax attention: it has to equal `twin`, made with
the same weights by name, on a sequence of FRAMES frames.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from speechattn import attention
from speechattn.attention import SelfAttention, SoftmaxSelfAttention

WIDTH, HEADS, FRAMES = 16, 2, 23


def open_gate(module: SelfAttention) -> None:
    """Lets everything through as it is."""
    torch.nn.init.zeros_(module.gate.weight)
    torch.nn.init.constant_(module.gate.bias, 100.0)


def remember_nothing(module: SelfAttention) -> None:
    """Lets everything through, and forgets what was before."""
    open_gate(module)
    torch.nn.init.zeros_(module.forget.weight)
    torch.nn.init.constant_(module.forget.bias, -100.0)


@dataclass(frozen=True)
class Case:
    """A mechanism and its options.

    Attributes:
        kind: name of the class in `speechattn.attention`.
        options: constructor arguments beyond width, heads and dropout.
        plain: options that make it softmax attention; None where there are none.
        twin: what it equals then.
        prepare: called with the plain module, to set what options cannot (a filter to identity).
        has_reference: it computes by a kernel with a `reference` path of its own.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    plain: dict[str, Any] | None = None
    twin: type[SelfAttention] = SoftmaxSelfAttention
    prepare: Callable[[SelfAttention], None] = lambda module: None
    has_reference: bool = True

    def __str__(self) -> str:
        return "-".join([self.kind, *(f"{k}={v}" for k, v in self.options.items())])

    def make(self, **options: Any) -> SelfAttention:
        """The module, with these options over its own."""
        return getattr(attention, self.kind)(WIDTH, HEADS, **{**self.options, **options})


CASES = [
    Case("RelativeSelfAttention"),
    Case("SoftmaxSelfAttention"),
    Case("SoftmaxSelfAttention", {"kv_heads": 1}, plain={"kv_heads": 2}),
    Case("SoftmaxSelfAttention", {"query_heads": 1}, plain={"query_heads": 2}),
    Case("SoftmaxSelfAttention", {"positions": "alibi"}),
    Case("SoftmaxSelfAttention", {"positions": "none"}),
    Case("SoftmaxSelfAttention", {"normalise": True}),
    Case("SoftmaxSelfAttention", {"gate": "head"}, plain={}, prepare=open_gate),
    Case("SoftmaxSelfAttention", {"gate": "channel"}, plain={}, prepare=open_gate),
    Case("LightningSelfAttention"),
    Case("LightningSelfAttention", {"gate": False, "decay": 0.0}),
    Case("GatedLinearSelfAttention"),
    Case("GatedLinearSelfAttention", {"key_width": 8, "temperature": 0.01}),
    Case("AgentSelfAttention"),
    Case("AgentSelfAttention", {"agents": 5, "kernel": 0}),
    Case("EfficientSelfAttention"),
    Case("BlockSparseSelfAttention", {"block": 3, "near": 0}, plain={"stride": 1}),
    Case("CircularSelfAttention"),
    Case("RecurrentSelfAttention", {"chunk": 4}, plain={"chunk": 1}, prepare=remember_nothing),
    Case("RecurrentSelfAttention", {"chunk": 32, "key_heads": 1}),
    Case("MultiTokenSelfAttention"),
    Case(
        "MultiTokenSelfAttention",
        {"queries": 2, "keys": 4, "mixed": 1, "normalise": False},
        plain={"keys": 3, "mixed": 0},
    ),
    Case("LocalSelfAttention", {"window": 4, "dilation": 3, "rotary": False}),
    Case("LocalSelfAttention", {"window": 5}, plain={"window": 2 * FRAMES + 1}),
    Case("LocalSelfAttention", {"window": (4, 2), "stride": 3, "sink": True}),
    Case("LocalSelfAttention", {"window": (7, 3), "rotary": False}),
    Case("LocalSelfAttention", {"window": 6, "stride": 6}),
    Case("EchoSelfAttention", {"windows": (2, 7)}, plain={"windows": ()}),
    Case("CoreContextSelfAttention", {"group": 3, "window": 3}, plain={"group": 1, "window": 4}),
    Case("CoreContextSelfAttention", {"group": 4, "window": 0}, plain={"window": 24}),
]
