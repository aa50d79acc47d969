"""Linear attention with a fixed decay per head (Lightning Attention-2, 2401.04658)."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from speechattn.attention.base import SelfAttention, check_heads, split_heads
from speechattn.attention.softmax import alibi_slopes
from speechattn.dropout import Dropout
from speechattn.kernels.attention.linear import (
    linear_attention,
    linear_attention_state,
    linear_attention_step,
)


@dataclass(frozen=True)
class LinearState:
    """The state of linear attention, of constant size.

    Attributes:
        sum: (B, H, Dk, Dv) of the products of keys and values, with decay; float32 at least.
    """

    sum: Tensor

    def keep(self, frames: int) -> "LinearState":
        """Return the state itself for `frames` below zero, which stands for all.

        Raises:
            ValueError: only some frames are to be kept.
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
    causal, here it falls the same to both sides. Positions come from the decay alone: the rotation
    of TransNormerLLM's first layer (LRPE) is left to the encoder's convolutions. The norm is over
    all heads together, as in that paper, with a learnt scale and with a sigmoid on the gate, as in
    MiniMax-01 (2501.08313, section 2.2). A step is causal frame by frame.

    Time and memory O(T) for T frames.

    Args:
        width: D.
        heads: H; divides D.
        dropout: of the heads' outputs, as there are no weights.
        gate: multiply the output by the sigmoid of a projection of the input.
        decay: factor of all slopes: 0 for none; TransNormerLLM has 1 - l/L at layer l of L.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, *, gate: bool = True, decay: float = 1.0
    ):
        super().__init__()
        check_heads("LightningSelfAttention", width, heads)
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

    def attend(self, x: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        y = linear_attention(*self._features(x), lengths, decay=self.decay, causal=causal)
        return self._merge(y, x)

    def init_state(self, batch: int) -> LinearState:
        """Return the state of B streams before their first frame."""
        q, _, v = self._features(self.query.weight.new_zeros(batch, 0, self.query.in_features))
        return LinearState(linear_attention_state(q, v))

    def step(self, x: Tensor, past: LinearState) -> tuple[Tensor, LinearState]:
        y, total = linear_attention_step(*self._features(x), past.sum, decay=self.decay)
        return self._merge(y, x), LinearState(total)

    def _features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return features of queries and keys, and values, each (B, T, H, Dh)."""
        silu = functional.silu
        return split_heads(self.heads, silu(self.query(x)), silu(self.key(x)), self.value(x))

    def _merge(self, y: Tensor, x: Tensor) -> Tensor:
        """Normalise (B, T, H, Dh), gate by the input (B, T, D), and project to (B, T, D)."""
        y = self.norm(y.flatten(2))
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        return self.output(self.dropout(y))
