"""Gaussian mixtures that move along the memory (GMM attention V2, 1910.10288, section 2.1).

Legend: see `speechattn.attention.location`; J Gaussians of a head.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from speechattn.attention.cross import CrossState
from speechattn.attention.location import LocationCrossAttention, each_sequence

# Of the N * U * H * J * T densities, so many at once.
MAX_DENSITIES = 2**23
# No Gaussian gets thinner, in frames; the paper has no bound.
MIN_SPREAD = 1e-2


class GmmCrossAttention(LocationCrossAttention):
    """Attention whose weights are, for each head, a mixture of J Gaussians over the frames.

    After tokens 0..u the mean of a Gaussian is the sum of its moves, softplus each, so it only goes
    forward; weights are a softmax over the J, spreads a softplus (V2 of the paper's table 1). All
    means of a sequence are one cumulative sum: there is no loop over tokens.

    Differences from the paper: `normalise`, and moves and spreads that begin at a token's size in
    frames instead of its 1 and 10 (V2b), by the bias of the last layer.

    Time O(T) for each token over T frames.

    Args:
        width: D.
        memory_size: width of the memory.
        heads: H, divides D.
        dropout: of the weights, where values are summed.
        mixtures: J.
        hidden: units of the layer over a token's state; 0 for D.
        move: frames from a token to the next, at first.
        spread: standard deviation in frames, at first.
        normalise: weights sum to 1 over the real frames, also where means have run past the end:
            the last frames then get all the weight. The paper's weights are densities, which
            vanish there.
    """

    def __init__(
        self,
        width: int,
        memory_size: int,
        heads: int,
        dropout: float = 0.0,
        *,
        mixtures: int = 5,
        hidden: int = 0,
        move: float = 3.0,
        spread: float = 5.0,
        normalise: bool = True,
    ):
        super().__init__(width, memory_size, heads, dropout, hidden=hidden)
        if mixtures < 1:
            raise ValueError(f"GmmCrossAttention: mixtures is at least 1, not {mixtures}")
        if move <= 0 or spread <= 0:
            raise ValueError(
                f"GmmCrossAttention: move {move:g} and spread {spread:g} are frames above 0"
            )
        self.mixtures, self.normalise = mixtures, normalise
        self.mixture = nn.Linear(self.hidden.out_features, 3 * heads * mixtures)
        with torch.no_grad():
            bias = self.mixture.bias.view(3, -1)
            for row, begin in zip(bias, (None, move, spread), strict=True):
                row.fill_(0.0 if begin is None else begin + math.log(-math.expm1(-begin)))

    def parameters_of(self, x: Tensor) -> Tensor:
        """Return log-weights, moves and spreads, (..., 3 * H * J)."""
        raw = self.mixture(self.hidden(x).tanh())
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        weight, move, spread = raw.unflatten(-1, (3, self.heads, self.mixtures)).unbind(-3)
        parts = (weight.log_softmax(-1), softplus(move), softplus(spread) + MIN_SPREAD)
        return torch.stack(parts, -3).flatten(-3)

    def begin(self, count: int, values: Tensor) -> CrossState:
        dtype = torch.promote_types(values.dtype, torch.float32)
        return (values.new_zeros(count, self.heads, self.mixtures, dtype=dtype),)

    def advance(
        self, parameters: Tensor, state: CrossState, mask: Tensor | None, frames: int
    ) -> tuple[Tensor, CrossState]:
        weight, move, spread = self._split(parameters)  # each (n, H, J)
        mean = state[0] + move
        mask = None if mask is None else mask[:, None]
        return self._mixture(weight, mean, spread, mask, frames), (mean,)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-weights, moves and spreads, (..., H, J) each."""
        return parameters.unflatten(-1, (3, self.heads, self.mixtures)).unbind(-3)

    def _mixture(
        self, weight: Tensor, mean: Tensor, spread: Tensor, mask: Tensor | None, frames: int
    ) -> Tensor:
        """Return the weights (..., H, T) of frames, from log-weights (..., H, J) and the like."""
        at = torch.arange(frames, dtype=mean.dtype, device=mean.device)
        away = (at - mean[..., None]) / spread[..., None]  # (..., H, J, T)
        height = weight - spread.log() - 0.5 * math.log(2 * math.pi)
        density = (height[..., None] - 0.5 * away.square()).logsumexp(-2)  # (..., H, T)
        if mask is not None:
            density = density.masked_fill(~mask, -math.inf)
        return density.softmax(-1) if self.normalise else density.exp()

    def _align(self, x: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        weight, move, spread = self._split(self.parameters_of(x))  # each (N, U, H, J)
        mask = each_sequence(mask, len(x))
        return self._mixtures(weight, move.cumsum(1), spread, mask, values.size(2))

    def _align_tree(
        self, x: Tensor, path: Tensor, depth: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        weight, move, spread = self._split(self.parameters_of(x))  # each (B, M, H, J)
        with torch.autocast(x.device.type, enabled=False):  # 8 bits do not count frames
            mean = (path.to(move.dtype) @ move.flatten(2)).view_as(move)
        return self._mixtures(weight, mean, spread, each_sequence(mask, len(x)), values.size(2))

    def _mixtures(
        self, weight: Tensor, mean: Tensor, spread: Tensor, mask: Tensor | None, frames: int
    ) -> Tensor:
        """Compute `_mixture` of many tokens (N, U, H, J), some at a time -> (N, U, H, T)."""
        mask = None if mask is None else mask[:, None, None]  # (N, 1, 1, T)
        some = max(1, MAX_DENSITIES // max(1, mean[:, :1].numel() * frames))
        parts = list(zip(*(p.split(some, 1) for p in (weight, mean, spread)), strict=True))
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([self._mixture(*part, mask, frames) for part in parts], 1)
        # The densities are not kept for the backward pass but computed again.
        run = partial(checkpoint, self._mixture, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([run(*part, mask, frames) for part in parts], 1)
