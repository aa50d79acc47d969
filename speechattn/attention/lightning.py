"""Linear attention with a fixed decay per head (Lightning Attention-2, 2401.04658).

Legend: B utterances, T frames, H heads, D width, Dh = D / H width of a head, c frames of a step.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from speechattn.attention.base import SelfAttention
from speechattn.attention.softmax import alibi_slopes
from speechattn.dropout import Dropout
from speechattn.kernels.attention.linear import (
    linear_attention,
    linear_attention_state,
    linear_attention_step,
)
from speechattn.masks import Chunks


@dataclass(frozen=True)
class LinearState:
    """What linear attention remembers of all frames before: as much after a day as after a second.

    Attributes:
        sum: (B, H, Dk, Dv) of the products of keys and values, with decay; float32 at least.
    """

    sum: Tensor

    def keep(self, frames: int) -> "LinearState":
        """Itself where `frames` is below zero, which stands for all.

        Raises:
            ValueError: only some are to be kept.
        """
        if frames >= 0:
            raise ValueError(
                "linear attention remembers a sum over all frames and cannot keep the newest "
                f"{frames} only: set left_context to -1"
            )
        return self


class LightningSelfAttention(SelfAttention):
    """Linear attention as in TransNormerLLM (2307.14995, sections 3.1 and 3.2; also 2401.04658).

        heads = silu(q) silu(k)^T times decay, times v;    output(RMSNorm(heads) gate)

    There is no softmax and no denominator: the norm keeps the scale. A head's weight of a frame
    falls by a factor exp(-slope) with each frame of distance, slopes as in ALiBi; the papers are
    causal, and to both sides it falls alike. Positions are nothing but the decay: the rotation that
    TransNormerLLM gives to its first layer (LRPE) is left to the encoder's convolutions.
    What we chose: the norm is over all heads together, as in that paper, with a learnt scale, as in
    MiniMax-01 (2501.08313, section 2.2), whose sigmoid on the gate is ours too. A step gives each
    frame what came before it, however many come at once.

    Time and memory O(T) for T frames.

    Args:
        width: D.
        heads: H; divides D.
        dropout: of what the heads give, as there are no weights.
        gate: multiply what comes out by the sigmoid of a projection of the input.
        decay: factor to all slopes: 0 for none; TransNormerLLM takes 1 - l/L at layer l of L.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        gate: bool = True,
        decay: float = 1.0,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(
                f"LightningSelfAttention: {heads} heads do not cut width {width} into equal parts"
            )
        if decay < 0:
            raise ValueError(f"LightningSelfAttention: decay is at least 0, not {decay}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.gate = nn.Linear(width, width) if gate else None
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.decay: Tensor | None
        slopes = -decay * alibi_slopes(heads) if decay > 0 else None
        self.register_buffer("decay", slopes, persistent=False)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        chunks: Chunks | None = None,
    ) -> Tensor:
        q, k, v = self._project(x)
        y = linear_attention(q, k, v, lengths, self.decay, causal=self.only_causal(chunks))
        return self._merge(y, x)

    def init_state(self, batch: int) -> LinearState:
        q, _, v = self._project(self.query.weight.new_zeros(batch, 0, self.query.in_features))
        return LinearState(linear_attention_state(q, v))

    def step(self, x: Tensor, past: LinearState) -> tuple[Tensor, LinearState]:
        q, k, v = self._project(x)
        y, total = linear_attention_step(q, k, v, past.sum, self.decay)
        return self._merge(y, x), LinearState(total)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of queries and keys, and values, each (B, T, H, Dh)."""
        parts = (functional.silu(self.query(x)), functional.silu(self.key(x)), self.value(x))
        return tuple(part.unflatten(-1, (self.heads, -1)) for part in parts)

    def _merge(self, y: Tensor, x: Tensor) -> Tensor:
        """The heads' (B, T, H, Dh), gated by the input (B, T, D), to (B, T, D)."""
        y = self.norm(y.flatten(2))
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        return self.output(self.dropout(y))
