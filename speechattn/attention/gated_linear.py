"""Linear attention with gates that depend on the data (GLA, 2312.06635).

Legend: see `speechattn.attention`; Dk width of a head's queries and keys, Dv = D / H of its values.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechattn.attention.base import SelfAttention, check_heads, split_heads
from speechattn.attention.lightning import LinearState
from speechattn.dropout import Dropout
from speechattn.kernels.attention.gated_linear import (
    gated_linear_attention,
    gated_linear_attention_step,
)
from speechattn.kernels.attention.linear import linear_attention_state


class GatedLinearSelfAttention(SelfAttention):
    """Gated linear attention (2312.06635, section 4.4).

        gate: logsigmoid(low-rank projection of x) / temperature, for each channel of the keys
        output(swish(projection of x) RMSNorm(each head))

    The paper is causal. Over whole utterances both directions are added, with the same projections
    and gates: what a frame gets from those before it and from those after it decays by the gates of
    the frames in between; its own value counts once.
    The norm of a head is RMSNorm with an eps of 1e-5, as in the authors' code, where the paper has
    LayerNorm; queries have no scale, since the norm would remove it. A step is causal frame by
    frame, however many come at once.

    Time and memory O(T) for T frames.

    Args:
        width: D.
        heads: H; divides D.
        dropout: of the heads' outputs, as there are no weights.
        key_width: Dk; 0 for half of Dv, as in the paper.
        gate_rank: width between the two projections of the gates.
        temperature: divides the log gates; the higher, the slower a new model forgets.
    """

    patterns = ("noncausal self", "causal self")

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        *,
        key_width: int = 0,
        gate_rank: int = 16,
        temperature: float = 16.0,
    ):
        super().__init__()
        check_heads("GatedLinearSelfAttention", width, heads)
        if key_width < 0 or gate_rank < 1 or temperature <= 0:
            raise ValueError(
                "GatedLinearSelfAttention: key_width is at least 0, gate_rank at least 1 and "
                f"temperature above 0, not {key_width}, {gate_rank} and {temperature}"
            )
        self.heads, self.temperature = heads, temperature
        keys = heads * (key_width or max(width // heads // 2, 1))
        self.query = nn.Linear(width, keys)
        self.key = nn.Linear(width, keys)
        self.value = nn.Linear(width, width)
        self.forget_down = nn.Linear(width, gate_rank, bias=False)
        self.forget = nn.Linear(gate_rank, keys)
        self.gate = nn.Linear(width, width)
        self.norm = nn.RMSNorm(width // heads, eps=1e-5)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def attend(self, x: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        y = gated_linear_attention(*self._project(x), lengths, causal=causal)
        return self._merge(y, x)

    def init_state(self, batch: int) -> LinearState:
        """Return the state of B streams before their first frame."""
        q, _, v, _ = self._project(self.query.weight.new_zeros(batch, 0, self.query.in_features))
        return LinearState(linear_attention_state(q, v))

    def step(self, x: Tensor, past: LinearState) -> tuple[Tensor, LinearState]:
        y, total = gated_linear_attention_step(*self._project(x), past.sum)
        return self._merge(y, x), LinearState(total)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys (B, T, H, Dk), values (B, T, H, Dv) and log gates (B, T, H, Dk)."""
        forget = self.forget(self.forget_down(x))
        # A log gate is close to zero and adds up over many frames: not in half precision.
        forget = forget.to(torch.promote_types(forget.dtype, torch.float32))
        parts = (self.query(x), self.key(x), self.value(x), functional.logsigmoid(forget))
        q, k, v, gates = split_heads(self.heads, *parts)
        return q, k, v, gates / self.temperature

    def _merge(self, y: Tensor, x: Tensor) -> Tensor:
        """Normalise (B, T, H, Dv), gate by the input (B, T, D), and project to (B, T, D)."""
        y = self.norm(y).flatten(2) * functional.silu(self.gate(x))
        return self.output(self.dropout(y))
