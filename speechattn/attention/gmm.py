"""Gaussian mixtures that move along the memory (GMM attention V2, 1910.10288, section 2.1).

Legend: B utterances, N sequences, n sequences in any order, U tokens, T memory frames, M nodes,
D width, H heads, K Gaussians of a head.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from speechattn.attention.cross import Heard
from speechattn.attention.location import LocationCrossAttention, each_sequence

# Of the N * U * H * K * T densities, so many at once.
MAX_DENSITIES = 2**23
# No Gaussian gets thinner, in frames; the paper has no bound.
MIN_SPREAD = 1e-2


class GmmCrossAttention(LocationCrossAttention):
    """Each head listens where a mixture of K Gaussians over the frames is.

    After tokens 0..u the mean of a Gaussian is the sum of its moves, softplus each, so it only goes
    forward; weights are a softmax over the K, spreads a softplus (V2 of the paper's table 1). All
    means of a sequence are one cumulative sum: there is no loop over tokens.

    Where the paper and we part: `normalise`, and moves and spreads that begin at a token's size in
    frames instead of the paper's 1 and 10 (V2b), by the bias of the last layer.

    Time O(T) for each token over T frames.

    Args:
        width: D.
        memory_size: width of the memory.
        heads: H, divides D.
        dropout: of the weights, where values are summed.
        mixtures: K.
        hidden: units of the layer that reads a token's state; 0 for D.
        move: frames from a token to the next, at first.
        spread: standard deviation in frames, at first.
        normalise: weights sum to 1 over the real frames, also where means have run past the end:
            the last frames are then what is heard. The paper's weights are densities, which
            sum to nothing there.
    """

    def __init__(
        self,
        width: int,
        memory_size: int,
        heads: int,
        dropout: float = 0.0,
        mixtures: int = 5,
        hidden: int = 0,
        move: float = 3.0,
        spread: float = 5.0,
        normalise: bool = True,
    ):
        super().__init__(width, memory_size, heads, dropout, hidden)
        if mixtures < 1:
            raise ValueError(f"GmmCrossAttention: mixtures is at least 1, not {mixtures}")
        if move <= 0 or spread <= 0:
            raise ValueError(
                f"GmmCrossAttention: move {move:g} and spread {spread:g} are frames above 0"
            )
        self.mixtures = mixtures
        self.normalise = normalise
        self.mixture = nn.Linear(self.hidden.out_features, 3 * heads * mixtures)
        with torch.no_grad():
            bias = self.mixture.bias.view(3, -1)
            for row, begin in zip(bias, (None, move, spread), strict=True):
                row.fill_(0.0 if begin is None else begin + math.log(-math.expm1(-begin)))

    def read(self, x: Tensor) -> Tensor:
        """Log-weights, moves and spreads, (..., 3 * H * K)."""
        raw = self.mixture(self.hidden(x).tanh())
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        weight, move, spread = raw.unflatten(-1, (3, self.heads, self.mixtures)).unbind(-3)
        said = (weight.log_softmax(-1), softplus(move), softplus(spread) + MIN_SPREAD)
        return torch.stack(said, -3).flatten(-3)

    def begin(self, count: int, values: Tensor) -> Heard:
        dtype = torch.promote_types(values.dtype, torch.float32)
        return (values.new_zeros(count, self.heads, self.mixtures, dtype=dtype),)

    def advance(
        self, said: Tensor, heard: Heard, mask: Tensor | None, frames: int
    ) -> tuple[Tensor, Heard]:
        weight, move, spread = self._parts(said)  # each (n, H, K)
        mean = heard[0] + move
        mask = None if mask is None else mask[:, None]
        return self._mixed(weight, mean, spread, mask, frames), (mean,)

    def _parts(self, said: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, moves, spreads, (..., H, K) each."""
        return said.unflatten(-1, (3, self.heads, self.mixtures)).unbind(-3)

    def _mixed(
        self, weight: Tensor, mean: Tensor, spread: Tensor, mask: Tensor | None, frames: int
    ) -> Tensor:
        """The weights of frames.

        Args:
            weight: (..., H, K) logarithms.
            mean: (..., H, K) frames.
            spread: (..., H, K) frames.
            mask: (..., 1, T) bool or None.
            frames: T.

        Returns:
            (..., H, T).
        """
        at = torch.arange(frames, dtype=mean.dtype, device=mean.device)
        away = (at - mean[..., None]) / spread[..., None]  # (..., H, K, T)
        height = weight - spread.log() - 0.5 * math.log(2 * math.pi)
        density = (height[..., None] - 0.5 * away.square()).logsumexp(-2)  # (..., H, T)
        if mask is not None:
            density = density.masked_fill(~mask, -math.inf)
        return density.softmax(-1) if self.normalise else density.exp()

    def _align(self, x: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        weight, move, spread = self._parts(self.read(x))  # each (N, U, H, K)
        return self._all(
            weight, move.cumsum(1), spread, each_sequence(mask, len(x)), values.size(2)
        )

    def _align_tree(
        self, x: Tensor, path: Tensor, depth: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        weight, move, spread = self._parts(self.read(x))  # each (B, M, H, K)
        with torch.autocast(x.device.type, enabled=False):  # 8 bits do not count frames
            mean = (path.to(move.dtype) @ move.flatten(2)).view_as(move)
        return self._all(weight, mean, spread, each_sequence(mask, len(x)), values.size(2))

    def _all(
        self, weight: Tensor, mean: Tensor, spread: Tensor, mask: Tensor | None, frames: int
    ) -> Tensor:
        """`_mixed` of many tokens, (N, U, H, K) each, some at a time -> (N, U, H, T)."""
        mask = None if mask is None else mask[:, None, None]  # (N, 1, 1, T)
        some = max(1, MAX_DENSITIES // max(1, mean[:, :1].numel() * frames))
        parts = list(zip(*(p.split(some, 1) for p in (weight, mean, spread)), strict=True))
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([self._mixed(*part, mask, frames) for part in parts], 1)
        # The densities are not kept for the backward pass but computed again.
        return torch.cat(
            [
                checkpoint(
                    self._mixed, *part, mask, frames, use_reentrant=False, preserve_rng_state=False
                )
                for part in parts
            ],
            1,
        )
