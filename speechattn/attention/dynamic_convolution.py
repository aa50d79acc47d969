"""Dynamic convolution attention (DCA, 1910.10288, section 2.2): the last alignment, filtered.

Legend: see `speechattn.attention.location`; C filters, L their length, I inner units of a head,
R reach of the prior.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad

from speechattn.attention.cross import CrossState
from speechattn.attention.location import LocationCrossAttention

# The prior of frames out of its reach; published implementations have the same number, the paper
# says only that the logarithm is clipped.
MIN_PRIOR = 1e-6


def beta_binomial(count: int, alpha: float, beta: float) -> Tensor:
    """Return the beta-binomial probabilities of 0..count, (count + 1,) float32."""
    k = torch.arange(count + 1, dtype=torch.float64)
    n, a, b = (torch.tensor(float(x), dtype=torch.float64) for x in (count, alpha, beta))

    def log_beta(x: Tensor, y: Tensor) -> Tensor:
        return x.lgamma() + y.lgamma() - (x + y).lgamma()

    choose = -(n + 1).log() - log_beta(n - k + 1, k + 1)
    return (choose + log_beta(k + a, n - k + b) - log_beta(a, b)).exp().float()


class DynamicConvolutionCrossAttention(LocationCrossAttention):
    """Attention with each head's weights computed from those of the token before:

        e_u = v . tanh(U f + T g + b) + log(P * a_{u-1}),   a_u = softmax(e_u)

    with f the last alignment under learnt filters, g under filters computed from the token's state,
    and P a causal prior that moves forward by at most R frames. The first token starts from a peak
    at frame 0. Tokens are a loop, of which the backward pass keeps only the alignments.

    Differences from the paper: one set of filters and energies per head; and the prior, there 11
    taps of mean 1, has R + 1 taps of the same shape, since a token may be a pause away.

    Time O(T) for each token over T frames.

    Args:
        width: D.
        memory_size: width of the memory.
        heads: H, divides D.
        dropout: of the weights, where values are summed.
        filters: C static ones, and as many dynamic ones.
        filter_length: L, odd, in frames.
        reach: R, the largest move of the prior in frames.
        alpha: of the beta-binomial prior; with beta, the mean move is R * alpha / (alpha + beta).
        beta: of the prior.
        units: I; the paper has 128 for its one head.
        hidden: units of the layer over a token's state; 0 for D.
    """

    def __init__(
        self,
        width: int,
        memory_size: int,
        heads: int,
        dropout: float = 0.0,
        *,
        filters: int = 8,
        filter_length: int = 21,
        reach: int = 50,
        alpha: float = 0.1,
        beta: float = 0.9,
        units: int = 32,
        hidden: int = 0,
    ):
        super().__init__(width, memory_size, heads, dropout, hidden=hidden)
        name = type(self).__name__
        if filters < 1 or filter_length < 1 or filter_length % 2 == 0:
            raise ValueError(
                f"{name}: at least one filter of an odd length, not {filters} of {filter_length}"
            )
        if units < 1:
            raise ValueError(f"{name}: units is at least 1, not {units}")
        if reach < 1 or alpha <= 0 or beta <= 0:
            raise ValueError(
                f"{name}: reach {reach}, alpha {alpha:g} and beta {beta:g} are above 0"
            )
        self.filters, self.filter_length = filters, filter_length
        dynamic = heads * filter_length * filters
        self.dynamic = nn.Linear(self.hidden.out_features, dynamic, bias=False)
        self.static = nn.Parameter(torch.empty(heads, filter_length, filters))
        self.mix = nn.Parameter(torch.empty(heads, 2 * filters, units))  # U and T
        self.mix_bias = nn.Parameter(torch.zeros(heads, 1, units))
        self.energy = nn.Parameter(torch.empty(heads, units, 1))  # v
        for parameter in (self.static, self.mix, self.energy):
            bound = parameter.size(1) ** -0.5
            nn.init.uniform_(parameter, -bound, bound)
        prior = beta_binomial(reach, alpha, beta).flip(0)[None, None]  # (1, 1, R + 1)
        self.prior: Tensor
        self.register_buffer("prior", prior, persistent=False)

    def parameters_of(self, x: Tensor) -> Tensor:
        """Return the dynamic filters, (..., H * L * C)."""
        raw = self.dynamic(self.hidden(x).tanh())
        return raw.to(torch.promote_types(raw.dtype, torch.float32))

    def begin(self, count: int, values: Tensor) -> CrossState:
        dtype = torch.promote_types(values.dtype, torch.float32)
        peak = values.new_zeros(count, self.heads, values.size(2), dtype=dtype)
        peak[..., 0] = 1.0
        return (peak,)

    def advance(
        self, parameters: Tensor, state: CrossState, mask: Tensor | None, frames: int
    ) -> tuple[Tensor, CrossState]:
        with torch.autocast(parameters.device.type, enabled=False):
            energy = self._energy(parameters, state[0].to(parameters.dtype))
        if mask is not None:
            energy = energy.masked_fill(~mask[:, None], -math.inf)
        weights = energy.softmax(-1)
        return weights, (weights,)

    def _energy(self, dynamic: Tensor, last: Tensor) -> Tensor:
        """Score frames by dynamic filters (n, H * L * C) and the last alignment (n, H, T)."""
        n, dtype, side = len(dynamic), dynamic.dtype, self.filter_length // 2
        dynamic = dynamic.view(n, self.heads, self.filter_length, self.filters)
        static = self.static.to(dtype).expand_as(dynamic)
        windows = pad(last, (side, side)).unfold(2, self.filter_length, 1)  # (n, H, T, L)
        found = windows @ torch.cat([static, dynamic], -1)  # (n, H, T, 2C)
        found = found.transpose(0, 1).flatten(1, 2)  # (H, n * T, 2C)
        found = torch.baddbmm(self.mix_bias.to(dtype), found, self.mix.to(dtype)).tanh()
        energy = (found @ self.energy.to(dtype)).view(self.heads, n, -1).transpose(0, 1)
        reached = pad(last.flatten(0, 1)[:, None], (self.prior.size(2) - 1, 0))
        reached = conv1d(reached, self.prior.to(dtype)).view_as(last)
        return energy + reached.clamp(min=MIN_PRIOR).log()
