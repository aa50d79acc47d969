"""Convolutional gating MLP of the Branchformer (2207.02971; gMLP, 2105.08050)."""

from torch import Tensor, nn
from torch.nn import functional

from speechattn.dropout import Dropout
from speechattn.encoders.activation import GateActivation, activation_function
from speechattn.encoders.depthwise import DepthwiseConv
from speechattn.encoders.stacked import LAYER_NORM_EPS
from speechattn.masks import Chunks


class ConvolutionalGatingMLP(nn.Module):
    """Linear, GELU, one half gates the other by its neighbourhood in time, dropout, Linear.

    Args:
        width: D.
        units: width of the inner layer, even.
        kernel: K of the gate's depthwise convolution, odd.
        dropout: of the gated half.
        linear: a Linear over the channels after the gate's convolution (`use_linear_after_conv` in
            ESPnet).
        gate_activation: of the gate.
        causal: see `DepthwiseConv`.
    """

    def __init__(
        self,
        width: int,
        units: int,
        kernel: int = 31,
        dropout: float = 0.1,
        *,
        linear: bool = False,
        gate_activation: GateActivation = "identity",
        causal: bool = False,
    ):
        super().__init__()
        if units % 2:
            raise ValueError(f"ConvolutionalGatingMLP: units must be even, not {units}")
        self.expand = nn.Linear(width, units)
        self.norm = nn.LayerNorm(units // 2, eps=LAYER_NORM_EPS)
        self.depthwise = DepthwiseConv(units // 2, kernel, causal)
        self.linear = nn.Linear(units // 2, units // 2) if linear else None
        self.contract = nn.Linear(units // 2, width)
        self.dropout = Dropout(dropout)
        self.activation = None
        if gate_activation != "identity":
            self.activation = activation_function(gate_activation)
        # The gate starts open, which gMLP found needed for stable training.
        for layer in filter(None, (self.depthwise, self.linear)):
            nn.init.normal_(layer.weight, std=1e-6)
            nn.init.ones_(layer.bias)

    def forward(self, x: Tensor, lengths: Tensor, chunks: Chunks | None = None) -> Tensor:
        """Map x (B, T, D), with lengths (B,), to (B, T, D)."""
        content, gate = functional.gelu(self.expand(x)).chunk(2, dim=-1)
        gate = self.depthwise(self.norm(gate), lengths, chunks)  # (B, T, units/2)
        return self._gated(content, gate)

    def init_state(self, batch: int) -> Tensor:
        """Return the state of B streams that begin."""
        return self.depthwise.init_state(batch)

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Map the next chunk (B, c, D) to (B, c, D), and return the state after it."""
        content, gate = functional.gelu(self.expand(x)).chunk(2, dim=-1)
        gate, past = self.depthwise.step(self.norm(gate), past)  # (B, c, units/2)
        return self._gated(content, gate), past

    def _gated(self, content: Tensor, gate: Tensor) -> Tensor:
        if self.linear is not None:
            gate = self.linear(gate)
        if self.activation is not None:
            gate = self.activation(gate)
        return self.contract(self.dropout(content * gate))
